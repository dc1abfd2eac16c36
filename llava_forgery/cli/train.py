"""Commands that train."""

from pathlib import Path
from typing import Annotated

import typer

from llava_forgery.cli.app import train
from llava_forgery.cli.options import (
    AllowDownload,
    DeepSpeed,
    Dtype,
    Faces,
    Images,
    Out,
    Quantization,
    ReportTo,
    Resume,
    Seed,
)


@train.command("detector")
def train_kfd(
    faces: Faces,
    out: Out,
    preset: Annotated[
        str | None, typer.Option(help="tiny or paper; default: tiny, unless --base-model is given.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="Folder or hub name of a host: the detector reads that host's own vision tower, "
            "so that an image is encoded once for both.",
        ),
    ] = None,
    taps: Annotated[
        str | None,
        typer.Option(
            help="With --base-model: blocks to read, such as 12,18,24; default: 1/2, 3/4, last."
        ),
    ] = None,
    text_model: Annotated[
        str | None,
        typer.Option(
            help="With --base-model: open_clip model whose text tower encodes the descriptions; "
            "default: a small one that is trained."
        ),
    ] = None,
    text_weights: Annotated[
        str | None, typer.Option(help="open_clip's weights tag of --text-model, or a path.")
    ] = None,
    trunk_weights: Annotated[
        Path | None, typer.Option(help="safetensors to initialise a timm trunk.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 220,
    batch_size: Annotated[int, typer.Option(help="Pairs per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    eval_steps: Annotated[
        int | None,
        typer.Option(
            help="Validate on the faces of split val every N steps, and write the best state "
            "instead of the last."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with differences from the defaults: simulator, framing, degradation, "
            "weights, average, schedule."
        ),
    ] = None,
    fakes: Annotated[
        Path | None,
        typer.Option(
            help="Folder written by prepare whose labelled fakes, with or without masks, and real "
            "faces are mixed in."
        ),
    ] = None,
    fake_ratio: Annotated[
        float, typer.Option(help="With --fakes: share of the pairs that show one of its fakes.")
    ] = 0.5,
    renderer: Annotated[
        str,
        typer.Option(
            help="Device that forges: cpu (the worker processes), a device such as cuda:0, or "
            "auto: the training's GPU if there is one."
        ),
    ] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that simulate forgeries.")] = 1,
    seed: Seed = 0,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """Stage 1: train the detector on forgeries simulated from the real training faces."""
    from llava_forgery.convert.sources import load_trunk
    from llava_forgery.faces.records import load_faces
    from llava_forgery.kfd.checkpoint import CONFIG
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.kfd.host_config import host_config, parse_taps
    from llava_forgery.simulate.pairs import load_real_faces
    from llava_forgery.train.recipe import Stage1Recipe, read_recipe
    from llava_forgery.train.run_record import check_training_folder
    from llava_forgery.train.stage1 import train_kfd as run

    check_training_folder(out, out / CONFIG)
    settings = Stage1Recipe() if recipe is None else read_recipe(recipe)
    if base_model is None and (taps or text_model or text_weights):
        raise ValueError("--taps, --text-model and --text-weights are for --base-model")
    if base_model is not None and preset is not None:
        raise ValueError("give either --preset or --base-model, which decides the detector's sizes")
    rows = load_real_faces(faces, "train")
    labelled = None if fakes is None else load_faces(fakes, "train")
    val_rows = None if eval_steps is None else load_real_faces(faces, "val")
    if base_model is None:
        detector = KnowledgeGuidedForgeryDetector.from_preset(preset or "tiny", seed)
    else:
        config = host_config(
            base_model, taps=parse_taps(taps), text_model=text_model, text_weights=text_weights
        )
        detector = KnowledgeGuidedForgeryDetector.from_config(config, seed)
    if trunk_weights is not None:
        load_trunk(detector, trunk_weights)
    run(
        detector,
        rows,
        out,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        save_steps=save_steps,
        val_faces=val_rows,
        eval_steps=eval_steps or 100,
        labelled=labelled,
        fake_ratio=fake_ratio,
        renderer=renderer,
        workers=workers,
        seed=seed,
        resume=resume,
        report_to=report_to,
        **vars(settings),
    )


@train.command("adapter")
def train_adapter(
    base_model: Annotated[
        str, typer.Option("--base-model", help="Folder or hub name of the host.")
    ],
    kfd: Annotated[Path, typer.Option("--kfd", help="Folder of a trained detector.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Folder written by build-qa, LLaVA's JSON or LLaVA-NeXT's YAML."
        ),
    ],
    out: Out,
    backend: Annotated[
        str,
        typer.Option(help="transformers, llava, or auto: that of the host's checkpoint."),
    ] = "auto",
    image_folder: Annotated[
        Path | None,
        typer.Option(help="Folder image paths in --data are relative to; default: its own."),
    ] = None,
    general: Annotated[
        Path | None,
        typer.Option(help="General instruction data to alternate with, as for --data."),
    ] = None,
    general_images: Annotated[
        Path | None, typer.Option(help="As --image-folder, for --general.")
    ] = None,
    general_ratio: Annotated[
        float, typer.Option(help="With --general: its share, in [0, 1).")
    ] = 0.5,
    val_data: Annotated[
        Path | None,
        typer.Option(
            help="Conversations about people who are not trained on (build-qa --split val): the "
            "state with the lowest loss on them is written instead of the last."
        ),
    ] = None,
    eval_steps: Annotated[
        int, typer.Option(min=1, help="With --val-data: steps between two validations.")
    ] = 50,
    allow_absolute_paths: Annotated[
        bool, typer.Option(help="Allow image paths to lead out of the image folder.")
    ] = False,
    validate: Annotated[
        bool,
        typer.Option(help="Read and tokenise all of JSON and YAML first; list invalid samples."),
    ] = True,
    skip_invalid: Annotated[
        bool, typer.Option(help="Skip invalid samples with a warning.")
    ] = False,
    lora: Annotated[bool, typer.Option(help="Train LoRA and the FPL, or only the FPL.")] = True,
    lora_r: Annotated[int, typer.Option(help="LoRA's rank.")] = 32,
    lora_alpha: Annotated[int, typer.Option(help="LoRA's scale.")] = 32,
    lora_dropout: Annotated[float, typer.Option(help="LoRA's dropout.")] = 0.1,
    train_projector: Annotated[
        bool, typer.Option("--train-projector", help="Also train the host's own projector.")
    ] = False,
    template: Annotated[
        str, typer.Option(help="With --backend llava: name in LLaVA's conv_templates.")
    ] = "v1",
    fpl_kind: Annotated[str, typer.Option(help="Sizes of the FPL: lite or paper.")] = "lite",
    placement: Annotated[
        str,
        typer.Option(
            help="Position of the FPL's embeddings: always (after every image, also in prompts of "
            "programs unaware of the skill) or placeholders (where a prompt holds <forgery>)."
        ),
    ] = "always",
    crop: Annotated[
        str,
        typer.Option(
            help="What the detector sees of pictures from such programs: face (found and cut out) "
            "or none (the whole picture)."
        ),
    ] = "face",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    fpl_warmup_steps: Annotated[
        int, typer.Option(help="Steps of the FPL's warm start without the host; 0: none.")
    ] = 400,
    fpl_warmup_faces: Annotated[
        Path | None,
        typer.Option(help="Folder of faces to forge for the warm start, with the conversations."),
    ] = None,
    fpl_warmup_pairs: Annotated[
        int, typer.Option(help="With --fpl-warmup-faces: number of forgeries.")
    ] = 1200,
    batch_size: Annotated[int, typer.Option(help="Conversations per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    fpl_learning_rate: Annotated[
        float | None, typer.Option(help="Peak for the FPL; default: a tenth after a warm start.")
    ] = None,
    projector_learning_rate: Annotated[
        float | None,
        typer.Option(help="With --train-projector: its peak; default: --learning-rate."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Maximum tokens of a conversation.")] = 2048,
    accumulate: Annotated[int, typer.Option(help="Gradient accumulation: passes per step.")] = 1,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Recompute the host's layers to save memory.")
    ] = False,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    allow_download: AllowDownload = False,
    deepspeed: DeepSpeed = None,
    seed: Seed = 0,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """Stage 2: train the forgery adapter of a host on conversations."""
    from llava_forgery.hosts.attach import attach_new, find_backend
    from llava_forgery.hosts.lora import LoraSettings
    from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
    from llava_forgery.simulate.pairs import load_real_faces
    from llava_forgery.train.adapter import check_adapter_folder
    from llava_forgery.train.adapter import train_adapter as run
    from llava_forgery.train.dialogues import open_source, open_sources
    from llava_forgery.train.run_record import training_folder
    from llava_forgery.train.samples import valid_dialogues
    from llava_forgery.train.warmup import further_forgeries

    check_adapter_folder(out, backend)
    if fpl_warmup_faces is not None and not fpl_warmup_steps:
        raise ValueError(
            "--fpl-warmup-faces is for the warm start, which --fpl-warmup-steps 0 disables"
        )
    if projector_learning_rate is not None and not train_projector:
        raise ValueError("--projector-learning-rate has no effect without --train-projector")
    # Before the host, which takes minutes to load.
    more = None
    if fpl_warmup_faces is not None:
        detector = KnowledgeGuidedForgeryDetector.from_pretrained(
            kfd, with_tower=False, allow_download=allow_download
        )
        faces = load_real_faces(fpl_warmup_faces, "train")
        more = further_forgeries(faces, fpl_warmup_pairs, detector, seed)
    backend = find_backend(base_model, backend)
    check_adapter_folder(out, backend)
    invalid: list[str] | None = [] if validate else None
    sources = open_sources(
        data, general, image_folder, general_images, seed, invalid, allow_absolute_paths
    )
    if val_data is not None:
        options = (seed, invalid, allow_absolute_paths)
        sources["validation"] = open_source(val_data, image_folder, *options)
    vlm = attach_new(
        base_model,
        kfd,
        LoraSettings(r=lora_r, alpha=lora_alpha, dropout=lora_dropout) if lora else None,
        backend=backend,
        seed=seed,
        train_projector=train_projector,
        quantization=quantization,
        dtype=dtype,
        template=template,
        placement=placement,
        crop=crop,
        allow_download=allow_download,
        fpl_kind=fpl_kind,
    )
    if invalid is not None:
        sources = valid_dialogues(
            sources, vlm.prompts, max_length, training_folder(out), invalid, skip_invalid
        )
    run(
        vlm,
        sources["skill"],
        out,
        general=sources.get("general"),
        general_ratio=general_ratio,
        val_conversations=sources.get("validation"),
        eval_steps=eval_steps,
        steps=steps,
        fpl_warmup_steps=fpl_warmup_steps,
        fpl_warmup_pairs=more,
        batch_size=batch_size,
        accumulate=accumulate,
        save_steps=save_steps,
        learning_rate=learning_rate,
        fpl_learning_rate=fpl_learning_rate,
        projector_learning_rate=projector_learning_rate,
        max_length=max_length,
        seed=seed,
        resume=resume,
        report_to=report_to,
        gradient_checkpointing=gradient_checkpointing,
        deepspeed=deepspeed,
    )


@train.command("pseudo-word")
def train_pseudo_word(
    base_model: Annotated[
        str, typer.Option("--base-model", help="Folder or hub name of the host.")
    ],
    data: Images,
    out: Out,
    question: Annotated[
        str, typer.Option(help="Question without the pseudo-word.")
    ] = "Is this photo real?",
    placement: Annotated[
        str, typer.Option(help="Position of [*]: postfix, prefix or replace (of 'real').")
    ] = "postfix",
    real_answer: Annotated[str, typer.Option(help="Answer for a real photo.")] = "yes",
    fake_answer: Annotated[str, typer.Option(help="Answer for a fake one.")] = "no",
    initial_word: Annotated[
        str | None, typer.Option(help="Word to start from; default: drawn like the vocabulary.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the photos.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Photos per step and process.")] = 6,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-5,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.05,
    save_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; default: none.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read photos.")] = 0,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    deepspeed: DeepSpeed = None,
    seed: Seed = 0,
    resume: Resume = False,
    report_to: ReportTo = "none",
) -> None:
    """AntifakePrompt: train the embedding of one pseudo-word on real and fake photos."""
    from llava_forgery.data.labelled import read_sources
    from llava_forgery.files import check_output_folder
    from llava_forgery.hosts.pseudo_word import PseudoWordConfig, attach_pseudo_word
    from llava_forgery.hosts.pseudo_word_checkpoint import CONFIG, ENTRIES
    from llava_forgery.hosts.transformers.loading import load_host
    from llava_forgery.train.antifake_prompt import train_pseudo_word as run
    from llava_forgery.train.run_record import check_training_folder, training_folder

    check_output_folder(out, CONFIG, entries=ENTRIES)
    check_training_folder(training_folder(out), out / CONFIG)
    config = PseudoWordConfig(question, placement, real_answer, fake_answer, initial_word)
    images = read_sources(data)
    model, processor = load_host(Path.cwd(), base_model, quantization, dtype=dtype)
    run(
        attach_pseudo_word(model, processor, config, seed),
        images,
        out,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        save_steps=save_steps,
        workers=workers,
        resume=resume,
        report_to=report_to,
        deepspeed=deepspeed,
    )
