"""A tiny network as it would ship: its weights and its card in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import torch

from veilray.files import sha256_file, write_json
from veilray.metrics.interval import Interval
from veilray.models.config import ModelConfig
from veilray.models.shipped.card import Card, CardData, CardScore, CardSpeed, config_digest
from veilray.models.unet import UNet
from veilray.models.weights import save_weights
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig, TrainConfig

NOISE = NoiseConfig(mean=0.1, std=(0.05, 0.3))


def ship(folder: Path, name: str = "default", *, cohort_digest: str = "0" * 64) -> Card:
    """Write NAME.safetensors and NAME.json into a folder; returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(width=4, depth=3, residual=True).eval()
    weights = folder / f"{name}.safetensors"
    save_weights(weights, network, noise=NOISE)
    model = ModelConfig(name="unet", width=4, depth=3, residual=True)
    config = RunConfig(model=model, noise=NOISE, train=TrainConfig(crop=128)).model_dump(mode="json")
    card = Card(
        name=name,
        summary="A tiny network for tests.",
        intended_use="Tests.",
        limits=("It was never trained.",),
        medical_device=False,
        licence="Apache-2.0",
        data=CardData(
            name="phantoms",
            source="veilray demo",
            licence="CC0",
            train_images=24,
            train_patients=12,
            validation_images=8,
            validation_patients=4,
            cohort_digest=cohort_digest,
        ),
        config=config,
        config_digest=config_digest(config),
        parameters=sum(value.numel() for value in network.parameters()),
        weights_sha256=sha256_file(weights),
        weights_bytes=weights.stat().st_size,
        scores=(
            CardScore(
                data="phantoms, test",
                n_images=8,
                n_patients=4,
                noise=NoiseConfig(mean=0.1, std=0.2),
                confidence=0.95,
                metrics={"psnr": Interval(mean=31.25, low=30.5, high=32.0)},
            ),
        ),
        speed=(CardSpeed(device="CPU, 2 threads", height=256, width=256, images_per_second=25.0),),
        trained_by="0.1.0",
    )
    write_json(folder / f"{name}.json", card.model_dump(mode="json"))
    return card
