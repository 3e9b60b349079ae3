"""What models add to the loss they return: λR, by its own formula, from the weights or the routers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from loratlas.errors import DataError
from loratlas.evaluation.eval_precision import evaluating
from loratlas.modeling import unwrap


def orthogonality(model: Any) -> float:
    """AdaLoRA's term: λ · mean over the factors P of ‖P Pᵀ − I‖_F, added to every loss, in evaluation as well.

    P is lora_A [r, d_in], or lora_B [d_out, r] transposed, of the adapter that trains, or of the first one where none
    does; λ is its ``orth_reg_weight``.

    Args:
        model: a `PeftModel` with an AdaLoRA adapter.

    Returns:
        Nats; 0 for a model without such an adapter.

    Source: AdaLoRA, arXiv:2303.10512, equation 4 (there a sum of squares, in PEFT a mean of norms).
    """
    import torch

    tuner = getattr(model, "base_model", model)
    configs = getattr(tuner, "peft_config", {})
    # Loaded for inference, no adapter of the model trains; the tool that printed the loss had it training.
    first = next((name for name, config in configs.items() if hasattr(config, "orth_reg_weight")), None)
    name = getattr(tuner, "trainable_adapter_name", None) or first
    config = configs.get(name)
    strength = getattr(config, "orth_reg_weight", 0.0)
    norms = []
    for path, p in tuner.named_parameters() if strength else ():
        if name in path.split(".") and ("lora_A" in path or "lora_B" in path):
            factor = p.detach().double()
            gram = factor @ factor.T if "lora_A" in path else factor.T @ factor
            norms.append(float(torch.linalg.norm(gram - torch.eye(len(gram), dtype=gram.dtype).to(gram))))
    return float(strength * sum(norms) / len(norms)) if norms else 0.0


def router_balance(model: Any, batches: Iterable[tuple[Any, Any]]) -> float:
    """The balance term of mixture-of-experts models: coefficient · E · Σ_k Σ_e f_ke · P_e, a mean over batches.

    f_ke is the share of a batch's tokens whose k-th expert is e, P_e the mean probability of expert e; tokens of all
    layers are pooled, padding is left out. Batches are weighed by their examples, as a trainer weighs their losses.

    Args:
        model: a model whose forward pass takes ``output_router_logits``.
        batches: (input_ids [b, L], attention_mask [b, L]) as the tool makes them; the term depends on the batch.

    Returns:
        Nats.

    Raises:
        DataError: a model without routers, or no batches.

    Source: Switch Transformers, arXiv:2101.03961, equations 4 to 6.
    """
    import torch

    config = unwrap(model).config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    strength = getattr(config, "router_aux_loss_coef", None)
    total = examples = 0.0
    with evaluating(model):
        for ids, mask in batches:
            out = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
            routers = getattr(out, "router_logits", None)
            if not routers or chosen is None or strength is None:
                raise DataError(
                    given="a router's balance term",
                    found="a model without routers",
                    instead="a mixture-of-experts model",
                )
            real = mask.reshape(-1).bool()
            p = torch.cat([layer.reshape(len(real), -1)[real] for layer in routers]).double().softmax(-1)
            picks = torch.zeros_like(p).scatter_(1, p.topk(chosen, -1).indices, 1.0)
            total += len(ids) * float(p.shape[1] * (picks.mean(0) * p.mean(0)).sum())
            examples += len(ids)
    if not examples:
        raise DataError(given="a router's balance term", found="no batches", instead="at least one")
    return float(strength * total / examples)  # type: ignore[operator]
