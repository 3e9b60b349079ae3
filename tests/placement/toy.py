"""Anatomies made by hand, for tests that need no model."""

from __future__ import annotations

from loratlas.anatomy.sites import Anatomy, Site

SHAPES = {"attn.q": (24, 16), "attn.k": (8, 16), "attn.v": (8, 16), "attn.o": (16, 24), "ffn.gate": (40, 16),
          "ffn.up": (40, 16), "ffn.down": (16, 40)}  # fmt: skip


def site(path: str, role: str, shape: tuple[int, int], *, layer: int | None = None, **more) -> Site:
    module = path.removesuffix(".weight")
    return Site(
        path=path,
        module=module,
        layer=layer,
        role=role,
        shape=shape,
        **{"scope": "decoder", "kind": "linear", **more},
    )


def block(layer: int, *, scope: str = "decoder", shapes: dict[str, tuple[int, int]] = SHAPES) -> list[Site]:
    tower = "model.layers" if scope == "decoder" else f"{scope}.layers"
    return [
        site(f"{tower}.{layer}.{role}.weight", role, shape, layer=layer, scope=scope)
        for role, shape in shapes.items()
    ]


def anatomy(sites: list[Site], *, layers: int, parameters: int = 100_000) -> Anatomy:
    return Anatomy(
        model="toy",
        model_type="toy",
        parameters=parameters,
        layers=layers,
        sites=tuple(sites),
        config_digest="0123456789abcdef",
        hidden=16,
        vocabulary=32,
        heads=4,
    )


def decoder(layers: int = 8) -> Anatomy:
    """A llama-like decoder with an untied embedding and head."""
    sites = [site("model.embed.weight", "embed", (32, 16), kind="embedding")]
    for layer in range(layers):
        sites += block(layer)
    sites.append(site("head.weight", "head.lm", (32, 16)))
    return anatomy(sites, layers=layers)


def mixture() -> Anatomy:
    """Two layers with a router, stacked experts, a shared expert and its gate, and a vision tower of 4 layers."""
    sites = [site("model.embed.weight", "embed", (32, 16), kind="embedding")]
    for layer in range(2):
        name = f"model.layers.{layer}"
        sites += block(layer, shapes={"attn.q": (16, 16), "attn.o": (16, 16)})
        sites += [
            site(f"{name}.router.weight", "router", (4, 16), layer=layer),
            site(f"{name}.experts.gate_up", "moe.gate_up", (24, 16), layer=layer, kind="experts", experts=4),
            site(f"{name}.shared.up.weight", "shared.up", (24, 16), layer=layer),
            site(f"{name}.shared_gate.weight", "shared_gate", (1, 16), layer=layer),
            site(f"{name}.rel.weight", "attn.rel", (16, 16), layer=layer),
            site(f"{name}.mixer.decay.weight", "mixer.decay", (16, 16), layer=layer),
            site(f"{name}.mixer.out.weight", "mixer.out", (16, 16), layer=layer),
        ]
    for layer in range(4):
        sites += block(layer, scope="vision", shapes={"attn.q": (16, 16), "ffn.up": (24, 16)})
    sites.append(
        site("head.weight", "head.lm", (32, 16), flags=frozenset({"tied"}), tied_to="model.embed.weight")
    )
    return anatomy(sites, layers=2)
