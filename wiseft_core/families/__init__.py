"""What an adapter means: one paper per file, pure tensor maths.

The files here know matrices and factors, and nothing of names, files, dtypes or layouts. `FAMILIES` is a plain dict
that every verb takes as an argument: pass `FAMILIES | {"mine": ...}` to add a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from wiseft_core.families._family import MODULES, Change, Factors, Family, Hyper, Option, Options, Sizes, Total
from wiseft_core.families.adalora import ADALORA
from wiseft_core.families.bdlora import BDLORA
from wiseft_core.families.beft import BEFT
from wiseft_core.families.boft import BOFT
from wiseft_core.families.c3a import C3A
from wiseft_core.families.deft import DEFT
from wiseft_core.families.delora import DELORA
from wiseft_core.families.dora import DORA
from wiseft_core.families.fourierft import FOURIERFT
from wiseft_core.families.frod import FROD
from wiseft_core.families.full import FULL
from wiseft_core.families.glora import GLORA
from wiseft_core.families.gralora import GRALORA
from wiseft_core.families.hira import HIRA
from wiseft_core.families.hra import HRA
from wiseft_core.families.ia3 import IA3
from wiseft_core.families.kasa import KASA
from wiseft_core.families.ln_tuning import LN_TUNING
from wiseft_core.families.loha import LOHA
from wiseft_core.families.lokr import LOKR
from wiseft_core.families.lora import LORA
from wiseft_core.families.miss import MISS
from wiseft_core.families.oft import OFT
from wiseft_core.families.olora import OLORA
from wiseft_core.families.osf import OSF
from wiseft_core.families.peanut import PEANUT
from wiseft_core.families.pissa import PISSA
from wiseft_core.families.psoft import PSOFT
from wiseft_core.families.pvera import PVERA
from wiseft_core.families.randlora import RANDLORA
from wiseft_core.families.road import ROAD
from wiseft_core.families.shira import SHIRA
from wiseft_core.families.supertuning import SUPERTUNING, SUPRA
from wiseft_core.families.tinylora import TINYLORA
from wiseft_core.families.tokens import TOKENS
from wiseft_core.families.unilora import UNILORA
from wiseft_core.families.vblora import VBLORA
from wiseft_core.families.vera import VERA
from wiseft_core.families.waveft import WAVEFT

__all__ = ["FAMILIES", "MODULES", "Change", "Factors", "Family", "Hyper", "Option", "Options", "Sizes", "Total"]

FAMILIES: Final[Mapping[str, Family]] = {
    "full": FULL,
    "lora": LORA,
    "dora": DORA,
    "tokens": TOKENS,
    "loha": LOHA,
    "lokr": LOKR,
    "adalora": ADALORA,
    "ia3": IA3,
    "oft": OFT,
    "boft": BOFT,
    "hra": HRA,
    "miss": MISS,
    "vblora": VBLORA,
    "vera": VERA,
    "pvera": PVERA,
    "randlora": RANDLORA,
    "c3a": C3A,
    "fourierft": FOURIERFT,
    "waveft": WAVEFT,
    "bdlora": BDLORA,
    "kasa": KASA,
    "delora": DELORA,
    "gralora": GRALORA,
    "tinylora": TINYLORA,
    "unilora": UNILORA,
    "beft": BEFT,
    "supertuning": SUPERTUNING,
    "supra": SUPRA,
    "pissa": PISSA,
    "olora": OLORA,
    "shira": SHIRA,
    "ln_tuning": LN_TUNING,
    "hira": HIRA,
    "road": ROAD,
    "deft": DEFT,
    "osf": OSF,
    "peanut": PEANUT,
    "psoft": PSOFT,
    "glora": GLORA,
    "frod": FROD,
}
"""Every family that the package knows, by name."""
