"""Measured costs against formulas worked out by hand, and against a real forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from quadriga import randomness
from quadriga.contracts import LossOutput, Objective
from quadriga.engine.meters.cost import activation_bytes, measure, memory_estimate
from quadriga.engine.step.blocks import apply_recompute

BATCH, TOKENS, INPUT, WIDTH, HEADS, DEPTH = 3, 10, 12, 32, 4, 2
FLOAT = 4


class Layer(nn.Module):
    """Attention and an MLP, without norms and residuals, to keep the formulas short."""

    def __init__(self, mask=None):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.mask = mask

    def forward(self, x):
        batch, tokens, width = x.shape
        parts = self.qkv(x).view(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(0), attn_mask=self.mask)
        x = self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return self.down(functional.gelu(self.up(x)))


class Transformer(Objective):
    def __init__(self, layers):
        super().__init__()
        self.embed = nn.Linear(INPUT, WIDTH)
        self.layers = nn.Sequential(*layers)
        self.register_buffer("shift", torch.empty(WIDTH))

    def initialise(self, seed):
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.01)

    def forward(self, batch):
        hidden = self.layers(self.embed(batch["image"]) + self.shift)
        return LossOutput.of(hidden.sum(), None, {})


def example(device="meta", batch=BATCH):
    return {
        "image": torch.zeros(batch, TOKENS, INPUT, device=device),
        "key": torch.zeros(batch, dtype=torch.int64, device=device),
    }


def transformer(**arguments):
    with torch.device("meta"):
        return Transformer([Layer(**arguments) for _ in range(DEPTH)])


LINEAR_MACS = BATCH * TOKENS * DEPTH * 12 * WIDTH**2
EMBED_MACS = BATCH * TOKENS * INPUT * WIDTH
SCORE_MACS = BATCH * TOKENS**2 * WIDTH * DEPTH
PARAMETERS = (INPUT + 1) * WIDTH + DEPTH * (12 * WIDTH**2 + 9 * WIDTH)


def test_flops_are_those_of_the_formula():
    cost = measure(transformer(), example())
    # Forward: every product once, attention has two (scores, and scores times values).
    assert cost.forward_flops == 2 * (LINEAR_MACS + EMBED_MACS + 2 * SCORE_MACS)
    # Backward: two products for each of the forward's, but none for the gradient of the images;
    # five for fused attention, which computes the scores again.
    backward = 2 * (2 * LINEAR_MACS + EMBED_MACS + 5 * SCORE_MACS)
    assert cost.training_flops == cost.forward_flops + backward
    # What the mathematics asks for: four products for attention.
    assert cost.model_flops == 3 * cost.forward_flops - 2 * EMBED_MACS


def test_parameters_and_their_bytes():
    cost = measure(transformer(), example())
    assert cost.samples == BATCH
    assert cost.parameters == cost.trainable_parameters == PARAMETERS
    assert cost.parameter_bytes == FLOAT * (PARAMETERS + WIDTH)
    assert cost.trainable_bytes == FLOAT * PARAMETERS
    assert cost.batch_bytes == BATCH * TOKENS * INPUT * FLOAT + BATCH * 8


def test_kept_activations_are_those_of_the_formula():
    cost = measure(transformer(), example())
    # Per layer, in widths: its input (1), queries, keys and values (3), the attention's output
    # (1, laid out so that joining the heads copies nothing), the inputs of the MLP's maps (1 and
    # 4) and of its GELU (4).
    widths = 1 + 3 + 1 + 1 + 4 + 4
    log_sum_exp = BATCH * HEADS * -(-TOKENS // 32) * 32
    rng_state = 2 * 8
    layer = FLOAT * (BATCH * TOKENS * WIDTH * widths + log_sum_exp) + rng_state
    assert cost.activation_bytes == DEPTH * layer


@pytest.mark.parametrize("masked", [False, True])
def test_activations_are_what_a_real_forward_pass_keeps(masked):
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool) if masked else None
    objective = Transformer([Layer(mask) for _ in range(DEPTH)])
    objective.initialise(0)
    objective.shift.zero_()
    batch = example("cpu")
    state = [*objective.parameters(), *objective.buffers(), *batch.values()]
    kept = {t.untyped_storage().data_ptr(): 0 for t in state}
    alive = []

    def pack(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective(batch)
    meta = transformer(mask=None if mask is None else mask.to("meta"))
    measured = measure(meta, example()).activation_bytes
    # The kernels of CPU and GPU keep a normaliser per query; the GPU's is padded to 32 tokens
    # and stands beside a random state.
    assert measured == pytest.approx(sum(kept.values()), rel=0.05)


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputed_activations(mode):
    class Stack(Transformer):
        def __init__(self):
            super().__init__([Layer() for _ in range(DEPTH)])
            self.blocks = nn.ModuleList(self.layers)
            apply_recompute(self, mode)

    with torch.device("meta"):
        objective = Stack()
    kept = activation_bytes(objective, example())
    token = FLOAT * BATCH * TOKENS * WIDTH
    if mode == "full":
        assert kept == DEPTH * token  # each layer's input
    else:
        # The first input and the results of matrix products and attention, but not of GELU.
        log_sum_exp = FLOAT * BATCH * HEADS * -(-TOKENS // 32) * 32
        rng_state = 2 * 8
        assert kept == token + DEPTH * ((3 + 1 + 1 + 4 + 1) * token + log_sum_exp + rng_state)


def test_autocast_keeps_half_and_copies_of_the_weights():
    with FakeTensorMode():
        objective = Transformer([Layer() for _ in range(DEPTH)])

        def kept(batch, precision):
            return activation_bytes(objective, example("cpu", batch), precision)

        whole = kept(BATCH, torch.float32)
        assert whole == activation_bytes(transformer(), example())
        # Twice the batch: what follows the batch comes again, the weights' copies do not.
        steps = [kept(2 * BATCH, p) - kept(BATCH, p) for p in (torch.float32, torch.bfloat16)]
        weights = kept(BATCH, torch.bfloat16) - steps[1]
    # Half of everything but the images' copy and the normalisers of attention.
    copies = 2 * BATCH * TOKENS * INPUT
    log_sum_exp = DEPTH * FLOAT * BATCH * HEADS * -(-TOKENS // 32) * 32
    assert steps[1] == (steps[0] - log_sum_exp) / 2 + log_sum_exp + copies
    rng_states = DEPTH * 2 * 8
    # Copies of all weights but the embedding's: the images need no gradient.
    assert weights == 2 * DEPTH * 12 * WIDTH**2 + rng_states


def test_scores_are_not_kept():
    def bytes_at(tokens):
        batch = {"image": torch.zeros(2, tokens, INPUT, device="meta")}
        return measure(transformer(), batch).activation_bytes

    assert bytes_at(1024) == pytest.approx(2 * bytes_at(512), rel=1e-3)


def test_cost_is_linear_in_the_batch():
    one, four = (measure(transformer(), example(batch=n)) for n in (1, 4))
    assert four.training_flops == 4 * one.training_flops
    assert four.parameters == one.parameters
    assert four.activation_bytes == pytest.approx(4 * one.activation_bytes, rel=1e-3)


def test_frozen_and_shared_parameters():
    objective = transformer()
    objective.layers[1].up.weight = objective.layers[0].up.weight
    objective.embed.requires_grad_(False)
    cost = measure(objective, example())
    shared, frozen = 4 * WIDTH**2, (INPUT + 1) * WIDTH
    assert cost.parameters == PARAMETERS - shared
    assert cost.trainable_parameters == PARAMETERS - shared - frozen
    assert cost.parameter_bytes == FLOAT * (PARAMETERS - shared + WIDTH)
    full = measure(transformer(), example())
    # No gradient of the embedding's weight, and none of what comes into the first layer.
    saved = 2 * EMBED_MACS + 2 * BATCH * TOKENS * 3 * WIDTH**2
    assert full.training_flops - cost.training_flops == saved


def test_objective_is_left_without_gradients():
    objective = transformer().eval()
    measure(objective, example())
    assert objective.training
    assert all(parameter.grad is None for parameter in objective.parameters())


class Random(Objective):
    """Draws in every way a method may."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(INPUT))

    def initialise(self, seed):
        nn.init.zeros_(self.weight)

    def forward(self, batch):
        images = batch["image"]
        noise = randomness.uniform_rows(batch["key"], randomness.fold("noise"), TOKENS)
        order = noise.argsort(dim=1)
        images = images.gather(1, order[:, :, None].expand_as(images)) * self.weight
        path = randomness.uniform_rows(batch["key"], 1, 1)[:, 0] < 0.5
        source = randomness.layer_generator(2, images.device)
        dropped = images * torch.empty_like(images).bernoulli_(0.5, generator=source)
        return LossOutput.of((dropped * path[:, None, None]).sum(), None, {})


def test_random_draws_work_on_the_meta_device():
    with torch.device("meta"):
        objective = Random()
    cost = measure(objective, example())
    image = BATCH * TOKENS * INPUT
    # Kept: the gathered images, the dropped features' mask, and which branches are dropped.
    assert cost.activation_bytes == FLOAT * 2 * image + BATCH
    assert cost.forward_flops == 0


def test_layer_generator_of_a_real_device_is_unchanged_by_the_meta_device():
    with randomness.micro_batch(1, 2, 3, 0):
        meta = randomness.layer_generator(5, torch.device("meta"))
        real = randomness.layer_generator(5, torch.device("cpu"))
    assert torch.equal(meta.get_state(), real.get_state())


def test_memory_estimate_adds_up():
    cost = measure(transformer(), example())
    adam = memory_estimate(cost)
    assert adam.parameters == cost.parameter_bytes
    assert adam.gradients == FLOAT * PARAMETERS
    assert adam.optimizer == 2 * FLOAT * PARAMETERS
    assert adam.activations == cost.activation_bytes + cost.batch_bytes
    assert adam.total == adam.parameters + 3 * FLOAT * PARAMETERS + adam.activations
    assert memory_estimate(cost, gathered=99).gathered == 0  # nothing to gather on one rank
    shards = memory_estimate(cost, shards=4, gathered=99, has_ema=True)
    assert shards.parameters == cost.parameter_bytes / 4
    assert shards.gradients == shards.ema == FLOAT * PARAMETERS / 4
    assert shards.optimizer == 2 * shards.gradients
    assert shards.total == (
        shards.parameters + 4 * shards.gradients + 99 + cost.activation_bytes + cost.batch_bytes
    )
    momentum = memory_estimate(cost, optimizer_states_per_parameter=1, bytes_per_state=2)
    assert momentum.optimizer == 2 * PARAMETERS
