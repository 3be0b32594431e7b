"""The damages that agreement rules are held against, by family."""

from __future__ import annotations

import torch
from damages import (
    PYTHON,
    Damage,
    all_down,
    all_layers,
    attention,
    attention_scale,
    between,
    beyond,
    blind_to_first,
    embedding,
    end,
    epsilon,
    final_norm,
    gelu,
    head,
    in_layer,
    no_end,
    noisy,
    permuted,
    positions,
    pruned,
    round_to,
    rounded_output,
    skipped,
    swap_rows,
    theta,
    times,
    weights,
    windowed,
    without,
    zero,
    zero_columns,
)
from damages_decoding import (
    cache,
    coarse,
    decoded_positions,
    forgets,
    loses_prompt,
    one_token_for_ever,
    stale,
    wraps,
)

DAMAGES = (
    *(
        Damage(f"positions from {n} on, + {by}", "positions", beyond(n, by), behind=behind)
        for n, by, behind in (
            (64, 1, "mid"),
            (96, 1, "mid"),
            (128, 1, "mid"),
            (256, 1, "mid"),
            (512, 1, "long"),
            (1024, 1, "long"),
            (96, 100, "mid"),
        )
    ),
    Damage("positions x 1.05", "positions", positions(lambda ids: ids * 1.05)),
    Damage("positions / 2", "positions", positions(lambda ids: ids / 2)),
    Damage(
        "positions in bf16",
        "positions",
        positions(lambda ids: ids.bfloat16().float()),
        behind="mid",
    ),
    Damage("RoPE theta x 1.5", "positions", theta(1.5)),
    Damage("RoPE theta x 10", "positions", theta(10)),
    Damage("RoPE theta x 0.1", "positions", theta(0.1)),
    Damage("first RoPE frequency 0", "positions", without(0)),
    Damage("RoPE frequency 8 is 0", "positions", without(8)),
    Damage("Cyrillic tokens rolled", "tokens", permuted(between("\u0400", "\u04ff"))),
    Damage("Greek tokens rolled", "tokens", permuted(between("\u0370", "\u03ff"))),
    Damage("Arabic tokens rolled", "tokens", permuted(between("\u0600", "\u06ff"))),
    Damage("Chinese tokens rolled", "tokens", permuted(between("\u4e00", "\u9fff"))),
    Damage("accented Latin rolled", "tokens", permuted(between("\u00c0", "\u00ff"))),
    Damage("Python words rolled", "tokens", permuted(lambda text: text.strip() in PYTHON)),
    Damage("digits rolled", "tokens", permuted(str.isdigit)),
    Damage(
        "blank tokens rolled", "tokens", permuted(lambda text: len(text) > 1 > len(text.strip()))
    ),
    *(Damage(f"end of sequence {by:+g}", "end", end(by)) for by in (-5, -1.5, 1, 3)),
    Damage("end of sequence 0", "end", head(no_end)),
    *(
        Damage(f"logits x {factor}", "scale", weights(final_norm, times(factor)))
        for factor in (0.95, 1.05, 1.09)
    ),
    *(
        Damage(f"attention scale x {factor}", "scale", attention_scale(factor))
        for factor in (0.9, 1.05, 1.2)
    ),
    Damage("layer 15 x 1.02", "scale", weights(in_layer(15), times(1.02))),
    Damage("layer 15 x 1.05", "scale", weights(in_layer(15), times(1.05))),
    Damage("all down_proj x 1.02", "scale", weights(all_down, times(1.02))),
    Damage("all down_proj x 0.97", "scale", weights(all_down, times(0.97))),
    Damage("norms' epsilon 1e-3", "scale", epsilon(1e-3)),
    Damage("norms' epsilon 1e-2", "scale", epsilon(1e-2)),
    Damage("embeddings x 1.1", "scale", weights(embedding, times(1.1))),
    Damage("layer 15 down in 3 bits", "bits", weights(in_layer(15, "mlp.down_proj"), round_to(3))),
    Damage("layer 15 in 3 bits", "bits", weights(in_layer(15), round_to(3))),
    Damage("layer 0 in 4 bits", "bits", weights(in_layer(0), round_to(4))),
    Damage("all layers in 6 bits", "bits", weights(all_layers, round_to(6))),
    Damage("all layers in 8 bits", "bits", weights(all_layers, round_to(8, by_row=False))),
    Damage("layer 20 up in 2 bits", "bits", weights(in_layer(20, "mlp.up_proj"), round_to(2))),
    Damage("embeddings in 4 bits", "bits", weights(embedding, round_to(4))),
    Damage("embeddings in 6 bits", "bits", weights(embedding, round_to(6))),
    Damage("weights + 1 % noise", "bits", weights(all_layers, noisy(0.01))),
    Damage("layer 10 + 5 % noise", "bits", weights(in_layer(10), noisy(0.05))),
    Damage("5 % of weights 0", "bits", weights(all_layers, pruned(0.05))),
    Damage("10 % of weights 0", "bits", weights(all_layers, pruned(0.1))),
    Damage("layer 15 out in fp8", "bits", rounded_output(15, torch.float8_e4m3fn)),
    Damage(
        "layer 15 query heads swapped",
        "heads",
        weights(in_layer(15, "self_attn.q_proj"), swap_rows(0, 1, 64)),
    ),
    Damage(
        "layer 15 kv heads swapped",
        "heads",
        weights(in_layer(15, "self_attn.k_proj", "self_attn.v_proj"), swap_rows(0, 1, 64)),
    ),
    Damage(
        "layer 5 key heads swapped",
        "heads",
        weights(in_layer(5, "self_attn.k_proj"), swap_rows(1, 2, 64)),
    ),
    *(
        Damage(
            f"layer {layer} head {head} is 0",
            "heads",
            weights(in_layer(layer, "self_attn.o_proj"), zero_columns(64 * head, 64 * head + 64)),
        )
        for layer, head in ((5, 3), (15, 0), (25, 8))
    ),
    *(
        Damage(
            f"layer {layer} attention is 0",
            "heads",
            weights(in_layer(layer, "self_attn.o_proj"), zero),
        )
        for layer in (10, 20)
    ),
    Damage("layer 15 MLP is 0", "heads", weights(in_layer(15, "mlp.down_proj"), zero)),
    Damage(
        "layer 15, 100 neurons are 0",
        "heads",
        weights(in_layer(15, "mlp.down_proj"), zero_columns(0, 100)),
    ),
    Damage("layer 14 left out", "heads", skipped(14)),
    Damage("layer 15 GELU for SiLU", "heads", gelu(range(15, 16))),
    Damage("GELU for SiLU", "heads", gelu(range(30))),
    Damage("window of 64", "mask", attention(lambda *a: windowed(64, *a)), behind="mid"),
    Damage("window of 256", "mask", attention(lambda *a: windowed(256, *a)), behind="mid"),
    Damage("window of 1024", "mask", attention(lambda *a: windowed(1024, *a)), behind="long"),
    Damage("first token unseen", "mask", attention(blind_to_first)),
    Damage(
        "decoded positions + 1", "decoding", decoded_positions(lambda ids: ids + 1), decoding=True
    ),
    Damage(
        "decoded positions + 10", "decoding", decoded_positions(lambda ids: ids + 10), decoding=True
    ),
    Damage(
        "decoded positions 0", "decoding", decoded_positions(lambda ids: ids * 0), decoding=True
    ),
    Damage("value before is stale", "decoding", cache(stale), decoding=True),
    Damage("values older than 32 are 0", "decoding", cache(forgets(32)), decoding=True),
    Damage("8 prompt values lost", "decoding", cache(loses_prompt), decoding=True),
    Damage("cache wraps at 512", "decoding", cache(wraps(512)), decoding=True, behind="long"),
    Damage("cache in 4 bits", "decoding", cache(coarse(4)), decoding=True),
    Damage("cache in 6 bits", "decoding", cache(coarse(6)), decoding=True),
    Damage("one token for ever", "decoding", one_token_for_ever, decoding=True),
)
"""In this order; every second one of a family is held out (`agreement_damages.held_out`)."""
