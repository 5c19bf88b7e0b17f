"""`vitdeploy predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import options
from vitdeploy.cli.app import USE, app
from vitdeploy.cli.command import command
from vitdeploy.cli.console import Console


@command(
    app,
    section=USE,
    examples=[
        "vitdeploy predict deit cat.jpg dog.png",
        "vitdeploy predict deit photos/ --save answers/",
        "vitdeploy predict deit 'day1/**/*.jpg' --json",
        "vitdeploy predict videomae clips/juggling/clip7",
        "vitdeploy predict sam cat.jpg --points '400,300;120,80,0' --save masks/",
        "vitdeploy predict sam cat.jpg --box 90,60,520,430",
        "vitdeploy predict pointed photo.jpg --input point=0.25,0.5",
    ],
)
def predict(
    console: Console,
    artifact: options.ArtifactFolder,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders (all images below), or globs in quotes, where ** matches any folders. The order "
            "is that of the numbers in the names: frame2 is before frame10. For a model of clips: folders of frames.",
            show_default=False,
        ),
    ],
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--points",
            metavar="X,Y[;X,Y…]",
            help="Of a promptable model, such as SAM: points on the object, in pixels of the image; X,Y,0 is a point "
            "beside it. Each --points is a prompt of its own.",
            show_default=False,
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box",
            metavar="X0,Y0,X1,Y1",
            help="A box around the object: left, top, right and bottom. With --points too, they go in pairs.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a picture of each answer into this folder: boxes, coloured regions or objects, a depth map, or "
            "the best classes; for embeddings the vectors as .npy. It replaces only files with the same names.",
            show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="The value of an input beside the image that was kept open with `export --examples`: numbers, or "
            "FILE.npz. One for all images, or one for each. Can be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run an artifact on images, and print its answers.

    Preprocessing and labels are the model's own. The task of the model decides the form of the answers: classes,
    regions, boxes, objects with masks, keypoints, the range of a depth map, or a vector. Images run in batches of the
    size that the artifact was optimised for. A damaged image is named, the others are answered, and the exit code is 1.
    """
    from vitdeploy.artifact import load as load_artifact
    from vitdeploy.cli import views
    from vitdeploy.commands.family.predict import refuse_prompts
    from vitdeploy.commands.predict import Deployed
    from vitdeploy.commands.predict import predict as run_predict
    from vitdeploy.errors import UsageError
    from vitdeploy.recipe import parse_binds
    from vitdeploy.runtime.given_images import list_sources, read_frames

    if options.is_family(artifact):
        if inputs:
            raise UsageError(
                f"{artifact} is a promptable model, which has no --input", fix="Give --points or --box, or nothing."
            )
        from vitdeploy.commands.family.predict import parse_prompts, predict_prompts
        from vitdeploy.data.image_files import find_images
        from vitdeploy.runtime.segmenter import Segmenter

        prompts, sources = parse_prompts(points or (), box or ()), [path for one in images for path in find_images(one)]
        count = len(sources)
        with Segmenter(artifact) as segmenter:
            result = predict_prompts(segmenter, sources, prompts, console, save=save)
            random_weights = segmenter.family.encoder.random_weights
    else:
        if points or box:
            refuse_prompts(load_artifact(artifact))
        listed = list_sources(images, read_frames(artifact))
        count = len(listed)
        with Deployed(artifact) as deployed:
            result = run_predict(deployed, listed, console, save=save, inputs=parse_binds(inputs or (), "--input"))
            random_weights = deployed.artifact.random_weights
    if random_weights:
        console.warn("random weights: these answers mean nothing")
    answers, shown = result.model_dump(), views.show_predictions(result.predictions)
    if not result.failed:
        console.show(answers, *shown)
        return
    for failed in result.failed:
        console.warn(f"{failed.message.rstrip('.')}. {failed.fix}")
    message = f"{len(result.failed):,} of {count:,} images have no answer"
    console.fail_partly(answers, shown, message, "The notes above say why. All others are answered.")
    raise typer.Exit(1)
