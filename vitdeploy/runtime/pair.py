"""An encoder and a decoder that run in turn, as one session."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.family import Family
from vitdeploy.progress import Progress
from vitdeploy.recipe import REFERENCE
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.reference import choose_device, open_reference, rebuild_model
from vitdeploy.session import Array, Feeds, SequentialSession, Session

_OUTPUT_OF = "encoder."


@dataclasses.dataclass(frozen=True)
class Wiring:
    """The connections between the parts of a family.

    Attributes:
        image: the name of the encoder's input.
        links: for each input of the decoder that is not the prompt, the output of the encoder that feeds it.
    """

    image: str
    links: Mapping[str, str]


def link_parts(encoder: Artifact, decoder: Artifact) -> dict[str, str]:
    """Return which output of the encoder each input of the decoder takes: that of the same name, as `encoder.NAME`."""
    outputs = {spec.name for spec in encoder.manifest.outputs}
    return {spec.name: _OUTPUT_OF + spec.name for spec in decoder.manifest.inputs if spec.name in outputs}


def read_wiring(encoder: Artifact, links: Mapping[str, str]) -> Wiring:
    """Return the connections that family.json names."""
    return Wiring(
        encoder.manifest.inputs[0].name, {name: output.removeprefix(_OUTPUT_OF) for name, output in links.items()}
    )


class PairSession(SequentialSession):
    """An encoder and a decoder in turn: it takes the image and the prompt, and gives the decoder's outputs.

    Closing it closes both.
    """

    def __init__(self, encoder: Session, decoder: Session, wiring: Wiring, *, name: str = "") -> None:
        """Connect two open sessions.

        Args:
            encoder: takes the image.
            decoder: takes outputs of the encoder and the prompt.
            wiring: which output goes to which input.
            name: the name of the pair; empty: that of the encoder.
        """
        self._encoder, self._decoder, self._wiring = encoder, decoder, wiring
        self.name = name or encoder.name
        self.threads = encoder.threads
        self.effective = encoder.effective

    def encode(self, image: Array) -> dict[str, Array]:
        """Run the encoder on one image. Return the inputs of the decoder that come from it."""
        outputs = self._encoder.run({self._wiring.image: image})
        return {name: outputs[output] for name, output in self._wiring.links.items()}

    def decode(self, encoded: Mapping[str, Array], prompt: Mapping[str, Array]) -> dict[str, Array]:
        """Run the decoder on what the encoder gave and a prompt."""
        return self._decoder.run({**encoded, **prompt})

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run both on an image and a prompt."""
        prompt = {name: value for name, value in feeds.items() if name != self._wiring.image}
        return self.decode(self.encode(feeds[self._wiring.image]), prompt)

    def close(self) -> None:
        """Close both sessions."""
        self._encoder.close()
        self._decoder.close()


def open_pair(family: Family, threads: int | None = None, progress: Progress | None = None) -> PairSession:
    """Open both parts of a family to run them here.

    Raises:
        TargetUnavailable: they are bundles, or this machine does not have their backend or device.
        ArtifactError: a file was changed since it was hashed.
    """
    return open_parts(family.encoder, family.decoder, family.record.links, threads, progress)


def open_reference_pair(family: Family, threads: int | None, *, same_device: bool = False) -> PairSession:
    """Open both parts of the model in PyTorch, in float32, as the reference.

    Args:
        family: the family.
        threads: the number of threads; None for all cores.
        same_device: refuse another kind of device than that of the family, for a fair comparison of speed.

    Raises:
        SourceError, MeasureError: see `rebuild_model` and `choose_device`.
    """
    models = [rebuild_model(part) for part in family.parts.values()]
    runs_on = targets.find(family.encoder.manifest.recipe.target).runs_on
    encoder, decoder = (
        open_reference(model, threads=threads, device=choose_device(model, runs_on, same=same_device))
        for model in models
    )
    return PairSession(encoder, decoder, read_wiring(family.encoder, family.record.links), name=REFERENCE)


def open_parts(
    encoder: Artifact,
    decoder: Artifact,
    links: Mapping[str, str],
    threads: int | None = None,
    progress: Progress | None = None,
) -> PairSession:
    """Open an encoder and a decoder that are no family yet; see `open_pair`."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(open_session(part, threads, progress)) for part in (encoder, decoder)]
        pair = PairSession(sessions[0], sessions[1], read_wiring(encoder, links))
        stack.pop_all()
    return pair
