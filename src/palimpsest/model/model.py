"""All that an audit does with a model."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from PIL.Image import Image
from torch import Tensor, nn

from palimpsest.assets import miniature_folder
from palimpsest.errors import BadModel
from palimpsest.model import weights
from palimpsest.model.adapters import adapters
from palimpsest.model.asking import Probe, Slope, ask, probe_cost
from palimpsest.model.loading import open_parts, open_twin, quiet
from palimpsest.model.network import Attention, Network
from palimpsest.model.precision import Precision
from palimpsest.model.sampling import Sampling, Walk, denoise, draw, picture_cost
from palimpsest.model.text import Text
from palimpsest.model.watching import watch
from palimpsest.records import Attempt, Cost

GuardT = TypeVar("GuardT", bound="Model")


class Model(Network):
    r"""The one door to diffusers.

    Weights are frozen and never changed in place: whatever changes them returns another model that shares the rest.
    Patterns are regular expressions that must match the whole qualified name, as in ``unet\..*attn2.*``.
    A guard is a subclass that overrides ``guided_noise`` (or ``encode`` or ``embed``), ``branches``, ``guard`` and, if
    it remembers something from step to step, ``outset``; ``behind`` puts it before a model.
    """

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        precision: Precision = "fp32",
        attention: Attention | None = None,
        batch: int | None = None,
        download: bool = False,
        config: str | Path | None = None,
    ) -> "Model":
        """Opens ``miniature``, its ``twin``, a diffusers folder, a .safetensors file or a hub id; raises ``BadModel``.

        A hub id is looked for in the local cache, and fetched only with ``download``. A single file needs ``config``, a
        diffusers folder of the same kind, or ``download``.
        """
        kept = dtype or torch.float32
        if source == "twin":
            parts = open_twin(kept)
        else:
            opened = miniature_folder() if source == "miniature" else source
            parts = open_parts(opened, kept, download=download, config=config)
        return cls(parts, device=device, dtype=kept, precision=precision, attention=attention, batch=batch)

    # Pictures --------------------------------------------------------------------------------------------------------

    def draw(
        self, attempts: Sequence[Attempt], sampling: Sampling, *, tensors: Mapping[str, Tensor] | None = None
    ) -> list[Image]:
        """Pictures in the order of the attempts; ``tensors`` holds what their ``words`` and ``start`` name."""
        return draw(self, attempts, sampling, tensors or {})

    def picture_cost(self, attempt: Attempt, sampling: Sampling) -> Cost:
        """What one picture is charged with, whatever was remembered; its look is the runner's to count."""
        return picture_cost(self, attempt, sampling)

    def schedule(self, sampling: Sampling) -> list[float]:
        """The training timestep at which each step of a picture starts."""
        walk = Walk(self.scheduler.config, sampling.scheduler, sampling.steps, self.device)
        times: list[float] = walk.steps.tolist()
        return [int(time) if float(time).is_integer() else time for time in times]

    @torch.no_grad()
    def trajectory(
        self, latents: Tensor, text: Text, sampling: Sampling, *, start: int = 0, until: int | None = None
    ) -> Tensor:
        """Noise (n, C, h, w) -> x_t at ``t = schedule(sampling)[until]``, after so many steps (None: all of them).

        With ``start`` the latents are not noise, but what came of so many steps. Guided by ``sampling.guidance``;
        without gradient; the batch is taken as it comes.
        """
        walk = Walk(self.scheduler.config, sampling.scheduler, sampling.steps, self.device)
        guided = sampling.guidance > 1 or self.guarded
        guidance = torch.full((len(latents),), sampling.guidance, device=self.device, dtype=self.dtype)
        scale = guidance if guided else None
        return denoise(self, latents.to(self.device, self.dtype), text, walk, guidance=scale, start=start, until=until)

    # Probes ----------------------------------------------------------------------------------------------------------

    def ask(self, probes: Sequence[Probe], *, base: "Model | None" = None) -> list[Slope]:
        """Slopes in the order of the probes; ``base`` answers those ``of="base"``."""
        return ask(self, probes, base)

    def probe_cost(self, probe: Probe) -> Cost:
        """What one probe is charged with."""
        return probe_cost(self, probe)

    # Weights ---------------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, schedule and guard; worked out anew each time while anything is trainable."""
        if self._fingerprint is None or self.trainable():
            self._fingerprint = weights.fingerprint(self)
        return self._fingerprint

    def weights(self, pattern: str = ".*") -> dict[str, nn.Parameter]:
        """Live weights by qualified name (``unet.``, ``text_encoder.``, ``vae.``); ``BadSetting`` if none matches."""
        return weights.matching(self, pattern)

    def feed_forwards(self) -> dict[str, tuple[str, ...]]:
        """The denoiser's second linears, each with what leads into it: (hidden or twice that, width); none: empty."""
        return {
            f"unet.{second}": tuple(f"unet.{first}" for first in firsts)
            for second, firsts in weights.feed_forwards(self.unet).items()
        }

    def with_weights(self, changed: Mapping[str, Tensor]) -> "Model":
        """A copy with these weights, all others shared; ``BadCheckpoint`` names what does not fit.

        They are taken one by one, so that a mapping may work each out when it is asked for.
        """
        return weights.changed(self, changed)

    def with_token(self, token: str, embedding: Tensor) -> "Model":
        """A copy whose tokenizer knows one more word, with this embedding (d,)."""
        return weights.with_token(self, token, embedding)

    def copy(self, *, trainable: str = "", lora: int | None = None, random: torch.Generator | None = None) -> "Model":
        """A copy to train: the weights that match are its own and require gradients, all others are shared.

        With ``lora``, the linear and convolution weights that match get trainable additions of that rank instead, from
        ``random``.
        """
        return weights.trainable(self, trainable, lora, random)

    def trainable(self) -> list[nn.Parameter]:
        """What an optimiser of this copy changes."""
        return [weight for weight in weights.matching(self, ".*").values() if weight.requires_grad]

    def behind(self, guard: "type[GuardT]", /, **facts: Any) -> "GuardT":
        """The same weights behind a guard with ``facts`` as attributes; ``BadSetting`` if they are behind one."""
        return weights.behind(self, guard, facts)

    def frozen(self) -> "Model":
        """A trained copy as an ordinary model, LoRA merged in; training may go on without changing it."""
        return weights.frozen(self)

    def watch(
        self,
        pattern: str,
        *,
        maps: bool = False,
        inputs: bool = False,
        keep: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> AbstractContextManager[dict[str, list[Tensor]]]:
        """Collects the outputs of the modules that match, one entry per forward.

        ``maps``: attention probabilities (n * heads, positions, context) instead, which ``keep`` is given with their
        gradient; ``inputs``: first inputs. ``keep`` makes of each what is worth its memory.
        """
        return watch(self, pattern, maps=maps, inputs=inputs, keep=keep)

    def save(self, folder: str | Path, *, max_shard_size: str = "10GB") -> None:
        """Writes a folder that plain diffusers opens; raises ``BadModel`` for what it cannot hold."""
        if self.guarded:
            raise BadModel(f"cannot save {type(self).__name__}: a plain diffusers folder holds no guard")
        if adapters(self):
            raise BadModel(
                "cannot save adapters: a plain diffusers folder holds none; save the changed weights (.safetensors)"
            )
        weights.require_plain(self)
        with quiet():
            pipeline = diffusers.StableDiffusionPipeline(
                vae=self.vae,
                text_encoder=self.text_encoder,
                tokenizer=self.tokenizer,
                unet=self.unet,
                scheduler=self.scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
            pipeline.save_pretrained(str(folder), max_shard_size=max_shard_size)
        # Diffusers writes defaults out, and another scheduler built from them would no longer take its own.
        config = Path(folder) / "scheduler" / "scheduler_config.json"
        assumed = set(self.scheduler.config.get("_use_default_values", ()))
        stated = {key: value for key, value in json.loads(config.read_text()).items() if key not in assumed}
        config.write_text(json.dumps(stated, indent=2) + "\n")
