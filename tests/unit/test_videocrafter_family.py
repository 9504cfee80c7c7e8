"""The family of ModelScope-type U-Nets: plans, surgery and bypass agree; sampling is the pipeline's own."""

from __future__ import annotations

import json

import pytest
import torch
from videocrafter_toys import LENGTH, OpenCLIPText, tiny_unet, tiny_vae

import vdmini_core
from vdmini_core.convert.parts import fill, text_part
from vdmini_core.errors import ModelError, PlanError
from vdmini_core.models import load_denoiser, removal, topology
from vdmini_core.models.base import Conditions, SamplingSettings
from vdmini_core.models.flops import total_flops
from vdmini_core.models.inputs import ClipInputs
from vdmini_core.models.inspect import inspect_model, load_architecture
from vdmini_core.models.registry import architecture, family_of, load_pipeline, load_settings, save_pipeline
from vdmini_core.models.videocrafter import VideoCrafterFamily
from vdmini_core.models.videocrafter_sampling import noise_levels, scheduler_of
from vdmini_core.profiling.sharing import recorded, replayed, start_of
from vdmini_core.pruning.planning import plan_model
from vdmini_core.pruning.surgery import apply_plan

FAMILY = VideoCrafterFamily()
SETTINGS = SamplingSettings(
    frames=3, height=8, width=16, fps=16, steps=4, guidance=7.5, latent_scale=2, decode_chunk_size=2
)
THREE_LEVELS = {"channel_mult": [1, 2, 2], "attention_resolutions": [1, 2], "num_res_blocks": 2}
UNITS = ("D.0.pair.1", "D.1.pair.0.temporal", "M", "M.temporal", "U.0.pair.2", "U.1.pair.1.temporal")


@pytest.fixture(scope="module")
def unet():
    return tiny_unet(**THREE_LEVELS)


def given(seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(count, 4, 3, 4, 8, generator=generator)
    text = torch.randn(count, LENGTH, 64, generator=generator)
    return sample, torch.tensor([37, 881][:count]), text, torch.tensor([8.0, 24.0][:count])


def forward(unet, args):
    with torch.no_grad():
        return unet(*args, return_dict=False)[0]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "whole", "left"),
    # 814.600 M and 1411.234 M without the embedding of the frame rate, 2.051 M, that the recipe keeps.
    [("videocrafter2", 1_413_284_420, 816_651_140), ("t2v-turbo-v2", 1_413_653_060, 817_019_780)],
)
def test_the_papers_cut_of_the_full_size_models(name, whole, left):
    plan = plan_model(name, {"recipe": "paper"})
    assert plan.removed == ("D.0.pair.1", "D.1.pair.1", "D.3", "M", "U.0", "U.2.pair.1", "U.3.pair.1")
    assert (plan.teacher_params, plan.expected_params) == (whole, left)
    assert plan.teacher_flops / 1e12 == pytest.approx(12.581, abs=5e-4)
    assert plan.expected_flops / 1e12 == pytest.approx(8.953, abs=5e-4)
    family, teacher, vae, settings = load_architecture(name)
    if name == "videocrafter2":  # the cuts' savings add up to what the student saves
        student = family.outline(teacher, plan.removed).model
        assert total_flops(student, settings) == plan.expected_flops
    assert (settings.frames, settings.height, settings.width) == (16, 320, 512)
    assert parameters(vae) == 83_653_863


def test_nothing_removed_is_the_same_model(unet):
    student = FAMILY.prune(unet, ())
    assert architecture(student) == architecture(unet)
    assert torch.equal(forward(student, given()), forward(unet, given()))


@pytest.mark.parametrize("unit", UNITS)
def test_a_bypassed_unit_is_a_removed_one(unet, unit):
    before = forward(unet, given())
    student = FAMILY.prune(unet, [unit])
    with FAMILY.bypass(unet, unit, "removed"):
        bypassed = forward(unet, given())
    assert torch.equal(forward(student, given()), bypassed)
    assert not torch.equal(bypassed, before)
    with FAMILY.bypass(unet, unit, "replaced", seed=1):
        assert not torch.equal(forward(unet, given()), before)
    assert torch.equal(forward(unet, given()), before)


def test_every_cut_saves_what_it_says(unet):
    flops = total_flops(unet, SETTINGS)
    cuts = FAMILY.cuts(unet, SETTINGS)
    assert {"M", "inner", "D.0.pair.0", "U.2.pair.2", "M.temporal"} <= {cut.name for cut in cuts}
    for cut in (cut for cut in cuts if cut.name in ("M", "inner", "D.0.pair.0", "U.1.pair.1.temporal")):
        student = FAMILY.outline(unet, cut.units).model
        assert parameters(student) == parameters(unet) - cut.parameters, cut.name
        assert total_flops(student, SETTINGS) == flops - cut.flops, cut.name
    units = FAMILY.units(unet, SETTINGS, "temporal")
    whole = next(unit for unit in units if unit.name == "D.0.pair.0")
    assert [path.split(".")[2] for path in whole.modules] == list(topology.PAIR_LISTS)
    parts = next(unit for unit in units if unit.name == "D.0.pair.0.temporal")
    assert set(parts.modules) < set(whole.modules) and parts.flops < whole.flops


def test_a_unit_that_changes_channels_stays(unet):
    with pytest.raises(PlanError, match=r"D\.1\.pair\.0 cannot be removed"):
        FAMILY.prune(unet, ["D.1.pair.0"])
    with FAMILY.bypass(unet, "D.1.pair.0", "removed"):  # by its own shortcut
        assert forward(unet, given()).shape == (2, 4, 3, 4, 8)
    assert "removable" not in {u.reason for u in FAMILY.units(unet, SETTINGS) if u.removable}


def test_the_papers_student_is_saved_loaded_and_cut_again(unet, tmp_path):
    student = FAMILY.prune(unet, FAMILY.paper_cut(unet))
    assert student.config.removed_units == ["D.0.pair.1", "D.2", "M", "U.0", "U.2.pair.1"]
    student.save_pretrained(tmp_path)
    again = load_denoiser(tmp_path)
    assert torch.equal(forward(again, given()), forward(student, given()))
    # Odd sides: the innermost level's resampling is gone with it.
    odd = (torch.randn(1, 4, 3, 6, 10), *given(count=1)[1:])
    assert forward(again, odd).shape == odd[0].shape
    further = FAMILY.prune(again, ["D.0.pair.0"])
    assert further.config.removed_units == ["D.0.pair.0", "D.0.pair.1", "D.2", "M", "U.0", "U.2.pair.1"]
    direct = FAMILY.prune(unet, further.config.removed_units)
    assert torch.equal(forward(further, given()), forward(direct, given()))
    with pytest.raises(PlanError, match=r"no unit `D\.0\.pair\.11`"):
        removal.canonical_units(unet, ["D.0.pair.11"])


def test_insides_can_be_narrower(unet, tmp_path):
    kept = {
        "up_blocks.1.attentions.0.transformer_blocks.0.ff": [*range(0, 256, 2)],
        "down_blocks.1.temp_attentions.1.transformer_blocks.0.ff": [*range(32, 128)],
    }
    student = FAMILY.prune(unet, ["M"], kept)
    state = unet.state_dict()
    for path, index in kept.items():
        network = student.get_submodule(path)
        assert network.net[2].in_features == len(index)
        assert torch.equal(network.net[2].weight, state[f"{path}.net.2.weight"][:, index])
    student.save_pretrained(tmp_path)
    assert torch.equal(forward(load_denoiser(tmp_path), given()), forward(student, given()))


def test_what_lies_before_a_unit_is_replayed_bit_by_bit(unet):
    points = FAMILY.trace_points(unet)
    with recorded(unet, points, 10**9) as trace:
        forward(unet, given())
    assert trace.whole and set(trace.outputs) == {point.path for point in points}
    units = {unit.name: unit for unit in FAMILY.units(unet, SETTINGS, "temporal")}
    for unit in (units[name] for name in UNITS):
        with FAMILY.bypass(unet, unit.name, "removed"):
            expected = forward(unet, given())
            with replayed(unet, points, start_of(points, unit.modules), trace):
                assert torch.equal(forward(unet, given()), expected), unit.name


def pipeline_of(kind, **changes):
    scheduler = "RescaledDDIMScheduler" if kind == "videocrafter2" else "ConsistencyScheduler"
    tower = text_part(OpenCLIPText().original())
    pipeline = vdmini_core.VideoCrafterPipeline(
        vae=tiny_vae().requires_grad_(False),
        text_encoder=fill(tower, torch.float32, lambda _: None),
        tokenizer=None,
        unet=tiny_unet(kind, **changes),
        scheduler=getattr(vdmini_core, scheduler)(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("kind", "usual"),
    [
        ("videocrafter2", {"fps": 28, "guidance_scale": 12.0, "num_inference_steps": 50}),
        ("t2v-turbo-v2", {"fps": 16, "guidance_scale": 7.5, "num_inference_steps": 8}),
    ],
)
def test_called_without_settings_it_samples_as_its_originals_script(kind, usual):
    pipeline, asked = pipeline_of(kind), []
    plan = pipeline.scheduler.set_timesteps

    def two_steps(count, **where):
        asked.append(count)
        plan(2, **where)

    pipeline.scheduler.set_timesteps = two_steps
    prompts = torch.randn(2, 1, LENGTH, 64, generator=torch.Generator().manual_seed(1))
    given = {"prompt_embeds": prompts[0], "negative_prompt_embeds": prompts[1], "output_type": "latent"}

    def sample(**settings):
        noise = torch.Generator().manual_seed(0)
        size = {"num_frames": 2, "height": 16, "width": 16}
        return pipeline(**given, **size, **settings, generator=noise)

    found = sample()
    assert asked == [usual.pop("num_inference_steps")]
    assert torch.equal(found, sample(**usual))
    for name, value in usual.items():
        assert not torch.equal(found, sample(**usual | {name: value - 1})), name


def conditions(count, seeds):
    generator = torch.Generator().manual_seed(9)
    text, negative = torch.randn(2, count, LENGTH, 64, generator=generator)
    ones = torch.ones(count)
    return Conditions(
        {
            "text": text,
            "negative_text": negative,
            "fps": SETTINGS.fps * ones,
            "guidance": SETTINGS.guidance * ones,
            "seed": torch.tensor(seeds),
        }
    )


@pytest.mark.parametrize("kind", ["videocrafter2", "t2v-turbo-v2"])
def test_sampling_is_the_pipelines_own_and_batches_do_not_matter(kind):
    pipeline, seeds = pipeline_of(kind), [4, 5]
    asked = conditions(2, seeds)
    noise = FAMILY.noise(pipeline.unet, SETTINGS, seeds)
    found = FAMILY.sample(pipeline, pipeline.unet, noise, asked, SETTINGS)
    expected = pipeline(
        prompt_embeds=asked.tensors["text"],
        negative_prompt_embeds=asked.tensors["negative_text"],
        num_frames=3,
        height=8,
        width=16,
        fps=16,
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    )
    scale = expected.abs().max()
    assert (found - expected.transpose(1, 2)).abs().max() < 1e-5 * scale
    alone = FAMILY.sample(pipeline, pipeline.unet, noise[1:], asked.slice(1, 2), SETTINGS)
    assert (alone[0] - found[1]).abs().max() < 1e-5 * scale
    clips = FAMILY.decode_latents(pipeline, found, SETTINGS)
    assert clips.shape == (2, 3, 8, 16, 3) and clips.dtype == torch.uint8
    assert FAMILY.encode_clips(pipeline, clips).shape == (2, 3, 4, 4, 8)


@pytest.mark.parametrize("kind", ["videocrafter2", "t2v-turbo-v2"])
def test_denoising_undoes_noise_that_the_unet_names(kind, monkeypatch):
    unet = tiny_unet(kind)
    clean, noise = torch.randn(2, 2, 3, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    scheduler = scheduler_of(unet)
    levels, roots = noise_levels(scheduler)
    times = torch.tensor([300, 950])
    seen = {}

    def oracle(sample, timestep, text, **more):
        seen.update(sample=sample, timestep=timestep, **more)
        return (noise.transpose(1, 2),)

    monkeypatch.setattr(type(unet), "forward", lambda _self, *args, **more: oracle(*args, **more))
    noisy = clean + levels[times][:, None, None, None, None] * noise
    found = FAMILY.denoise(unet, noisy, levels[times], conditions(2, [0, 0]))
    assert torch.equal(seen["timestep"], times)
    variance = roots[times] ** 2 * (1 + levels[times] ** 2)
    if kind == "videocrafter2":
        assert torch.allclose(found, clean, atol=1e-4)
        a, scale = scheduler.alphas_cumprod[times], scheduler.scales[times]
        assert torch.allclose(variance, a * scale**2 + 1 - a, atol=1e-5)
    else:
        skip, out = (s[:, None, None, None, None] for s in scheduler.boundary_scalings(times))
        assert torch.allclose(found, out * clean + skip * seen["sample"].transpose(1, 2), atol=1e-4)
        assert torch.allclose(variance, torch.ones(2), atol=1e-5)
        # Motion guidance is on at 950 and off at 300, which is not the embedding's zero.
        assert not torch.equal(*seen["motion_cond"]) and seen["motion_cond"][0, -1] == 1
    top = FAMILY.training_sigmas(SamplingSettings(3, 8, 16, 16, steps=1), 2, torch.Generator())
    assert (top == noise_levels(vdmini_core.ConsistencyScheduler())[0][-1]).all()
    many = FAMILY.training_sigmas(SETTINGS, 50, torch.Generator().manual_seed(0))
    assert len(many.unique()) > 30 and many.max() <= top[0]


def test_a_pipeline_directory_is_inspected_planned_cut_and_loaded(tmp_path):
    pipeline = pipeline_of("t2v-turbo-v2", **THREE_LEVELS)
    save_pipeline(pipeline, tmp_path / "teacher", None)
    (tmp_path / "teacher" / "vdmini.json").write_text(json.dumps({"num_frames": 3, "height": 8, "width": 16}))
    facts = inspect_model(tmp_path / "teacher")
    assert facts["family"] == "videocrafter" and facts["settings"]["guidance"] == 7.5
    assert facts["denoiser"]["parameters"] == parameters(pipeline.unet)
    assert facts["vae_decoder"]["flops"] > 0
    plan = plan_model(str(tmp_path / "teacher"), {"recipe": "paper"})
    loaded = load_pipeline(tmp_path / "teacher")
    assert family_of(loaded).name == "videocrafter"
    assert load_settings(tmp_path / "teacher", loaded).latent_size == (4, 8)
    student = apply_plan(loaded.unet, plan, FAMILY)
    loaded.register_modules(unet=student)
    save_pipeline(loaded, tmp_path / "student", None)
    again = load_pipeline(tmp_path / "student")
    assert torch.equal(forward(again.unet, given()), forward(student, given()))
    with pytest.raises(ModelError, match="starts from a prompt"):
        FAMILY.conditions(again, ClipInputs(torch.zeros(1, 8, 16, 3)), SETTINGS, 0)
