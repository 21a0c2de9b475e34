"""The arguments and options that several verbs share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from wiseft_core.store.hub import parse_name


class Chosen(NamedTuple):
    """Which of the weights in a base are meant."""

    weights: str | None = None
    component: str | None = None
    variant: str | None = None

    def words(self) -> list[str]:
        """The options that say so."""
        return [word for name, value in self._asdict().items() if value for word in (f"--{name}", value)]


def _path(text: str) -> Path:
    """A path. An empty one, as an unset shell variable gives, would mean the working directory."""
    if not str(text):
        raise typer.BadParameter("an empty path")
    path = Path(text)
    # `./org/model` is no name on the hub, which a Path does not tell: it drops the dot.
    return path.absolute() if str(path) != str(text) and parse_name(str(path)) else path


Base = Annotated[
    Path,
    typer.Argument(help="The base: a folder or file of safetensors, or a name on the hub: org/model.", parser=_path),
]
Adapter = Annotated[
    Path,
    typer.Argument(help="The adapter's folder, or a full fine-tuned checkpoint.", parser=_path),
]
AdapterOnly = Annotated[
    Path,
    typer.Argument(metavar="ADAPTER", help="The adapter's folder.", parser=_path),
]
Out = Annotated[Path, typer.Argument(help="The folder to write: new or empty.", parser=_path)]
DemoOut = Annotated[Path, typer.Argument(help="The folder to make.", parser=_path)]
Written = Annotated[Path, typer.Argument(help="A folder that wiseft wrote.", parser=_path)]
BaseOfAdapter = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="BASE",
        help="The base: needed where the change depends on it, or its factors do not tell the weight's shape.",
        parser=_path,
    ),
]
AgainstBase = Annotated[
    Path | None,
    typer.Option("--base", metavar="BASE", help="Compare with this base; needs --adapter too.", parser=_path),
]
AgainstAdapter = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        help="Compute the output again from this adapter; of a combination, give each.",
        parser=_path,
    ),
]
Alpha = Annotated[
    list[float] | None, typer.Option(metavar="A", help="0 gives the base, 1 the tuned model; given once.")
]
Alphas = Annotated[
    list[str] | None,
    typer.Option("--alpha", metavar="A", help="One alpha for each output; again for more, or START:STOP:STEP."),
]
AlphaFor = Annotated[
    list[str] | None,
    typer.Option(
        "--alpha-for",
        metavar="PATTERN=A",
        help="Another alpha for the tensors that a name or glob matches; may be given again.",
    ),
]
Schedule = Annotated[
    Path | None,
    typer.Option("--schedule", metavar="FILE", help="Take alpha by tensor from a .toml or .json file.", parser=_path),
]
AdapterName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which adapter, where ADAPTER holds several in sub-folders.")
]
Weights = Annotated[str | None, typer.Option(metavar="FILE", help="Which file of BASE, where several could be meant.")]
Component = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="One component alone of a pipeline: unet, transformer, text_encoder, ..."),
]
Variant = Annotated[str | None, typer.Option(metavar="NAME", help="Which variant of BASE: fp16, ...")]
OutputDtype = Annotated[
    str | None, typer.Option(metavar="DTYPE", help="Dtype of every float tensor of the output: bf16, fp16, fp32, ...")
]
ComputeDtype = Annotated[str, typer.Option(metavar="DTYPE", help="fp64 is exact, fp32 is faster.")]
Overflow = Annotated[str, typer.Option(metavar="POLICY", help="What to do with too large a result: error or saturate.")]
Tied = Annotated[
    str,
    typer.Option(
        metavar="untie|share",
        help="A tied embedding that tuning changes: write it and the head apart, or add both changes to the one.",
    ),
]
Device = Annotated[str | None, typer.Option(metavar="D", help="Where to compute: cpu, cuda:0, ...")]
MaxShardSize = Annotated[str | None, typer.Option(metavar="SIZE", help="Cut new shards of at most this size: 5GB.")]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads that compute; the bits stay the same.")]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Use fewer threads where more memory than this were needed: 512MB."),
]
Executor = Annotated[
    str | None,
    typer.Option(
        metavar="WHO",
        help="Who computes: threads:N, processes:N, or dask://HOST:PORT, a cluster that shares the files.",
    ),
]
NoSync = Annotated[bool, typer.Option("--no-sync", help="Do not force the output to disk before it appears.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped run of the same job was.")]
MaxOutput = Annotated[str | None, typer.Option("--max-output", metavar="SIZE", help="Refuse to write more: 200GB.")]
Sample = Annotated[int | None, typer.Option(metavar="N", min=1, help="Compare N drawn pieces only, for a quick look.")]
Extrapolate = Annotated[bool, typer.Option("--extrapolate", help="Allow alpha outside 0 to 1.")]
CopyCode = Annotated[bool, typer.Option("--copy-code", help="Also copy *.py files that lie beside the base.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors included.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, and no report of a success.")]
Eval = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="'CMD {model}'",
        help="Run this on each output, without a shell; its last line is a JSON object of metrics, or a number.",
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME:max|min",
        help="A metric that it reports. The first chooses the best alpha, the first two make the Pareto set.",
    ),
]
Keep = Annotated[
    str, typer.Option(metavar="all|best", help="best: keep one output at a time, and in the end the best.")
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw the WiSE-FT curve, as .png or .svg; needs matplotlib.", parser=_path),
]
Weighted = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="PATH=ALPHA", help="An adapter and its alpha; give it once for each adapter."),
]
AsAdapter = Annotated[
    str | None,
    typer.Option(metavar="cat|svd", help="Write an adapter instead: exact with the sum of the ranks, or of rank R."),
]
Rank = Annotated[int | None, typer.Option(metavar="R", min=1, help="Rank of the adapter that --as-adapter svd makes.")]
