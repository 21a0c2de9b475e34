"""Hostile names (T14), shapes and dtypes (T9), values (T12), coefficients (T13), and outputs (T4)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.scene import EMBEDDING, KEY, Q_A, Q_B, Case, Entry, Scene, floats

NAMES = (
    "", ".", "..", "...", "/", "../../etc/passwd", "a/../b", "\\\\x\\y", " ", "\t", "\n", "a\nb", "a\r\nb", "\0",
    "a\0b",
    "\x1b[2J\x1b[H", "\x1b]0;owned\7", "\x1b[31mred", "\x9b31m", "\x7f", "\u202eevil", "\u2066a\u2069", "\ufeff",
    "\u200b", "\U000e0041", "é", "e\u0301", "名", "\U0001f4a9", "%s%n", "{0.__class__}", "$(id)", "`id`", "'; --", '"',
    "model", "model.q_proj", "model.q_proj.weight.", ".model.q_proj.weight", "model..q_proj.weight",
    "model.q_proj.weightx", "model.q_proj.weight.weight", "a" * 100_000, "." * 5000, "lora_A", "lora_A.weight",
    "base_model.model.", "base_model.model..lora_A.weight",
)  # fmt: skip
METADATA_NAME = "__metadata__x"


def wrong_values(*patterns: int) -> Entry:
    """Factor A of q_proj with these bit patterns at its front."""
    return "F32", [2, 4], struct.pack(f"<{len(patterns)}I", *patterns) + bytes(4 * (8 - len(patterns)))


def added(tensors: dict[str, Entry], *without: str, **fields: object) -> Callable[[Scene], None]:
    """Tensors of the adapter set or left out, and fields of its config."""

    def spoil(scene: Scene) -> None:
        scene.add_to_adapter(tensors, without=without)
        if fields:
            scene.configure(**fields)

    return spoil


def in_base(tensors: dict[str, Entry]) -> Callable[[Scene], None]:
    """Tensors of the base set."""
    return lambda scene: scene.add_to_base(tensors)


def name_cases() -> Iterator[Case]:
    """Names that somebody may print, split, match or take for a path."""
    for name in (*NAMES, METADATA_NAME):
        shown = name[:40] or "(empty)"
        yield Case(f"base tensor {shown}", "name", "T14", in_base({name: floats(1)}), (0,))
        yield Case(f"adapter tensor {shown}", "name", "T14", added({name: floats(1)}))
        fits = (0,) if name == "model.q_proj" else (3, 4)
        yield Case(f"factors of {shown}", "name", "T14",
                   added({KEY.format(name, "A"): floats(2, 4), KEY.format(name, "B"): floats(6, 2)}), fits)  # fmt: skip


SHAPES: dict[str, dict[str, Entry]] = {
    "A for another width": {Q_A: floats(2, 5)},
    "B for another height": {Q_B: floats(7, 2)},
    "A and B of different ranks": {Q_A: floats(3, 4)},
    "both ranks not the config's": {Q_A: floats(3, 4), Q_B: floats(6, 3)},
    "rank zero": {Q_A: ("F32", [0, 4], b""), Q_B: ("F32", [6, 0], b"")},
    "A without axes": {Q_A: floats()},
    "B without axes": {Q_B: floats()},
    "A and B without axes": {Q_A: floats(), Q_B: floats()},
    "A as a vector": {Q_A: floats(8)},
    "B as a vector": {Q_B: floats(12)},
    "A with three axes": {Q_A: floats(2, 4, 1)},
    "B with three axes": {Q_B: floats(6, 2, 1)},
    "A with sixteen axes": {Q_A: floats(2, 4, *[1] * 14)},
    "A transposed": {Q_A: floats(4, 2)},
    "A without elements": {Q_A: ("F32", [2, 0], b"")},
    "A of 2^40 by 0": {Q_A: ("F32", [1 << 40, 0], b"")},
    "swapped factors": {Q_A: floats(6, 2), Q_B: floats(2, 4)},
    "a magnitude without axes": {Q_A.replace("lora_A.weight", "lora_magnitude_vector"): floats()},
    "a magnitude of another length": {Q_A.replace("lora_A.weight", "lora_magnitude_vector"): floats(5)},
    "a trained bias without axes": {Q_B.replace("weight", "bias"): floats()},
    "factors of an embedding too": {f"{Q_A[:-14]}.lora_embedding_A": floats(2, 6),
                                    f"{Q_A[:-14]}.lora_embedding_B": floats(4, 2)},
    "an embedding's A without axes": {f"{EMBEDDING}.lora_embedding_A": floats(),
                                      f"{EMBEDDING}.lora_embedding_B": floats(4, 2)},
    "a new value beside the factors": {"base_model.model.model.q_proj.weight": floats(5, 4)},
    "the same factor twice": {Q_A.replace("base_model.model.", ""): floats(2, 4)},
    "a saved and a live name": {Q_A.replace("lora_A.", "lora_A.default."): floats(2, 4)},
    "two adapters": {Q_A.replace("lora_A.", "lora_A.x."): floats(2, 4),
                     Q_B.replace("lora_B.", "lora_B.y."): floats(6, 2)},
    "token rows without axes": {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": floats()},
    "token rows of another width": {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": floats(2, 9)},
    "factors of a vector": {KEY.format("model.norm", "A"): floats(2, 4), KEY.format("model.norm", "B"): floats(4, 2)},
}  # fmt: skip
CODES = {"F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
DTYPES = {"U8": 1, "I8": 1, "I32": 4, "I64": 8, "U64": 8, "BOOL": 1, "C64": 8, "F8_E8M0": 1, "F8_E4M3FNUZ": 1}
PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
NOT_FINITE = {"NaN": 0x7FC00000, "a signalling NaN": 0x7F800001, "inf": 0x7F800000, "-inf": 0xFF800000}


def value_cases() -> Iterator[Case]:
    """Shapes that do not fit, dtypes that cannot be computed with, values that are no numbers."""
    rows = {"trainable_token_indices": {"embed_tokens": [1, 2]}}
    for name, tensors in SHAPES.items():
        fields = rows if "token rows" in name else {}
        yield Case(name, "shape", "T9", added(tensors, **fields), (3, 4))
    for missing in (Q_A, Q_B):
        yield Case(f"without {missing[-13:]}", "shape", "T9", added({}, missing))
    table = {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": floats(2, 4)}
    for indices in ([1], [1, 8], [1, 1 << 30], []):
        spoil = added(table, trainable_token_indices={"embed_tokens": indices})
        yield Case(f"token rows {indices}", "shape", "T9", spoil)
    scalar = {"base_model.model.scalar.token_adapter.trainable_tokens_delta": floats(1, 1)}
    yield Case("token rows of a scalar", "shape", "T9", both(scalar, {"scalar.weight": floats()}), (3, 4))
    yield Case("factors of a scalar", "shape", "T9",
               both({KEY.format("s", "A"): floats(2, 1), KEY.format("s", "B"): floats(1, 2)},
                    {"s.weight": floats()}), (3, 4))  # fmt: skip
    for dtype, size in DTYPES.items():
        yield Case(f"factor A in {dtype}", "dtype", "T9", added({Q_A: (dtype, [2, 4], bytes(8 * size))}), (3, 4))
        codes = in_base({"model.q_proj.weight": (dtype, [6, 4], bytes(24 * size))})
        yield Case(f"base weight in {dtype}", "dtype", "T9", codes, (3, 4))
        yield Case(
            f"untouched base tensor in {dtype}", "dtype", "T9", in_base({"x": (dtype, [3], bytes(3 * size))}), (0,)
        )
    for dtype, bits in PACKED.items():
        yield Case(f"factor A in {dtype}", "dtype", "T9", added({Q_A: (dtype, [2, 4], bytes(bits))}), (3, 4))
        codes = in_base({"model.q_proj.weight": (dtype, [6, 4], bytes(24 * bits // 8))})
        yield Case(f"base weight in {dtype}", "dtype", "T9", codes, (3, 4))
        yield Case(f"untouched base tensor in {dtype}", "dtype", "T9", in_base({"x": (dtype, [8], bytes(bits))}), (0,))
    for name, pattern in NOT_FINITE.items():
        yield Case(f"{name} in factor A", "value", "T12", added({Q_A: wrong_values(0, pattern)}))
        touched = in_base({"model.q_proj.weight": ("F32", [6, 4], struct.pack("<I", pattern) + bytes(92))})
        yield Case(f"{name} in a touched base weight", "value", "T12", touched, (0,))
    largest = struct.pack("<I", 0x7F7FFFFF)
    overflow = added({Q_A: wrong_values(0x7F7FFFFF), Q_B: ("F32", [6, 2], largest * 12)})
    yield Case("factors that overflow", "value", "T12", overflow)
    yield Case("a bool of 255", "value", "T12", in_base({"x": ("BOOL", [3], b"\xff\2\0")}), (0,))
    yield Case("a scale beside a weight", "value", "T9", in_base({"model.q_proj.weight_scale": floats(1)}), (4,))


def both(factors: dict[str, Entry], tensors: dict[str, Entry]) -> Callable[[Scene], None]:
    """Tensors of the adapter, and of the base."""

    def spoil(scene: Scene) -> None:
        scene.add_to_adapter(factors)
        scene.add_to_base(tensors)
        scene.configure(trainable_token_indices={"scalar": [0]})

    return spoil


def out_link(target: str) -> Callable[[Scene], None]:
    """A link where the output would be."""
    return lambda scene: (scene.root / "out").symlink_to(target)


def out_with(name: str, folder: str = "out") -> Callable[[Scene], None]:
    """A file where the output, or its staging folder, would be."""

    def spoil(scene: Scene) -> None:
        path: Path = scene.root / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")

    return spoil


def command_cases() -> Iterator[Case]:
    """Coefficients that are none, outputs in the wrong place, limits."""

    def sound(scene: Scene) -> None:
        """Nothing is wrong with the files."""

    for alpha in ("nan", "inf", "-inf", "1e999", "1.5", "-0.1", "1.0000000000000002", "-1e-300", "9" * 400):
        yield Case(f"alpha {alpha[:20]}", "alpha", "T13", sound, (3,), alpha=alpha)
    for alpha in ("abc", "", "0.5x", "0x1p-1", "1,5", "\x1b[31m1", "\0", "١"):
        yield Case(f"alpha {alpha!r}", "alpha", "T13", sound, (2,), alpha=alpha)
    for alpha in ("-0.0", "1e-320", "0", "1", " 0.5 "):
        yield Case(f"alpha {alpha!r}", "alpha", "T13", sound, (0,), alpha=alpha)
    for target in ("base", "adapter", "secret", "nothing", "out"):
        yield Case(f"out is a link to {target}", "output", "T4", out_link(target))
    yield Case("out holds a file", "output", "T4", out_with("mine"))
    yield Case("out holds a manifest", "output", "T4", out_with("wiseft.json"))
    yield Case("a file waits in the staging folder", "output", "T20", out_with("x", ".out.wiseft-staging"), (0,))
    yield Case("a link waits as staging folder", "output", "T20", planted)
    yield Case("an output above the limit", "output", "T18", sound, (3,), ("--max-output", "100B"))


def planted(scene: Scene) -> None:
    """A link to the secret's folder under the staging folder's name."""
    (scene.root / ".out.wiseft-staging").symlink_to("secret")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from name_cases()
    yield from value_cases()
    yield from command_cases()
