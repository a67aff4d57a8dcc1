"""CIFAR-10 at its own 32 pixels, patches of 4, tokens from k-means over an EfficientNet-Lite0."""

from mapet.config.recipe import Model, Objective, Optimization, Recipe, Tokenizer


def quickstart() -> Recipe:
    """A few minutes of MaPeT as published on two CPU cores; ``mapet quickstart`` changes it for the machine.

    8,000 of 50,000 images; 3 epochs of 250 steps with a batch of 32. Linear probe: at least 8 points above the
    untrained encoder (three seeds, two CPU cores).
    """
    return Recipe(
        data="cifar10",
        max_images=8_000,
        color_jitter=0.4,
        model=Model(
            name="custom",
            embed_dim=128,
            depth=4,
            num_heads=4,
            image_size=32,
            patch_size=4,
            init_values=None,
            drop_path=0.0,
        ),
        objective=Objective(name="mapet", mask_ratio=0.75),  # 48 of 64
        tokenizer=Tokenizer(
            teacher="efficientnet_lite0", vocab_size=512, samples=51_200, fit_images=2_000, iterations=10
        ),
        optimization=Optimization(epochs=3, batch_size=32, lr=2e-3, min_lr=1e-5, warmup_epochs=0.3, betas=(0.9, 0.98)),
    )


def vit_tiny() -> Recipe:
    """ViT-Ti/4 by MaPeT on all 50,000 images, 200 epochs: 50,000 / 256 = 195 steps per epoch, 39,000 in total.

    For one GPU. Accuracy: not measured yet.
    """
    return Recipe(
        data="cifar10",
        color_jitter=0.4,
        precision="bfloat16",
        model=Model(name="vit_tiny", image_size=32, patch_size=4, init_values=0.1, drop_path=0.0),
        objective=Objective(name="mapet", mask_ratio=0.75),
        tokenizer=Tokenizer(teacher="efficientnet_lite0", vocab_size=512, samples=262_144, iterations=20),
        optimization=Optimization(epochs=200, batch_size=256, lr=1.5e-3, min_lr=1e-5, warmup_epochs=10),
    )
