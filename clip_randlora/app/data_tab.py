"""The first tab: classes and their images, prompts, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gradio as gr

import clip_randlora as cr
from clip_randlora.app import rendering
from clip_randlora.app.service import Service
from clip_randlora.app.view import Update, View, gallery
from clip_randlora.app.workspace import Added, Workspace
from clip_randlora.data import summarize_skipped

_MAX_THUMBNAILS = 200  # of the chosen class


class DataTab(View):
    """Add classes and images, look through them, correct them."""

    def __init__(self, service: Service):
        super().__init__(service)
        self._build_sources()
        self.message = gr.HTML(elem_id="gather-message")
        self.overview = gr.HTML(elem_id="overview")
        self.warnings = gr.HTML(elem_id="warnings")
        self._build_editor()
        self._build_prompts()
        self.outputs = [
            self.message,
            self.overview,
            self.warnings,
            self.chosen,
            self.gallery,
            self.selected,
            self.new_name,
            self.words,
            self.templates,
            self.prompts,
            self.held_out,
        ]
        self._bind()

    def show(self, workspace: Workspace) -> Update:
        """Return the tab's contents, with the first class opened in the editor."""
        return {**self._open_class(workspace), self.templates: "\n".join(workspace.templates)}

    def _open_class(self, workspace: Workspace, chosen: str | None = None) -> Update:
        """Open a class in the editor, or the first one if it does not exist."""
        classes = workspace.classes
        if chosen not in classes:
            chosen = classes[0] if classes else None
        words = workspace.names.get(chosen, ()) if chosen else ()
        return {
            **self._refresh(workspace, chosen),
            self.new_name: chosen or "",
            self.words: ", ".join(words),
        }

    def _refresh(self, workspace: Workspace, chosen: str | None) -> Update:
        """Show what changed. The text boxes stay as they are: somebody may be typing there."""
        if chosen is not None and chosen not in workspace.classes:  # removed in another window
            return self._open_class(workspace)
        pictures = workspace.pictures(chosen) if chosen else []
        has_split = workspace.has_test_split
        return {
            self.message: "",
            self.overview: rendering.overview(workspace),
            self.warnings: rendering.messages(workspace.warnings(), "warning"),
            self.chosen: gr.update(choices=workspace.classes, value=chosen),
            self.gallery: [
                (str(workspace.thumbnail(picture.path)), "for testing" if picture.is_test else "")
                for picture in pictures[:_MAX_THUMBNAILS]
            ],
            self.selected: None,
            self.prompts: rendering.prompts(workspace.prompts()),
            self.held_out: gr.update(
                value=round(100 * workspace.held_out),
                interactive=not has_split,
                info="The images have a test split of their own."
                if has_split
                else "Percent of each class that is kept out of training, to measure on.",
            ),
        }

    def _build_sources(self) -> None:
        with gr.Row(equal_height=True):
            with gr.Column():
                gr.Markdown("### Start from a bundled set")
                self.sample = gr.Dropdown(
                    [
                        (f"{name}: {entry.images} images of {entry.classes} classes", name)
                        for name, entry in cr.DATASETS.items()
                    ],
                    label="Bundled set",
                    elem_id="sample",
                )
                self.load_sample = gr.Button("Load it", elem_id="load-sample")
            with gr.Column():
                gr.Markdown("### Upload a zip of class folders")
                self.archive = gr.File(
                    label="Zip with one folder of images per class",
                    file_types=[".zip"],
                    height=170,
                    elem_id="archive",
                )
            with gr.Column():
                gr.Markdown("### Or make a class")
                self.class_name = gr.Textbox(
                    label="Class name", placeholder="golden retriever", elem_id="class-name"
                )
                self.add_class = gr.Button("Add class", elem_id="add-class")

    def _build_editor(self) -> None:
        with gr.Accordion("Images of one class", open=True):
            self.chosen = gr.Dropdown([], label="Class", elem_id="chosen-class")
            with gr.Row():
                with gr.Column(scale=1):
                    self.files = gr.File(
                        label="Add images: drop or choose many",
                        file_count="multiple",
                        file_types=["image", ".heic", ".heif"],
                        height=170,
                        elem_id="class-files",
                    )
                    with gr.Accordion("Take photos with the webcam", open=False):
                        self.webcam = gr.Image(
                            sources=["webcam"],
                            type="filepath",
                            image_mode=None,
                            label="Webcam",
                            elem_id="class-webcam",
                        )
                        self.add_photo = gr.Button("Add the photo to the class")
                    with gr.Group():
                        self.new_name = gr.Textbox(label="Name", elem_id="new-name")
                        self.rename = gr.Button("Rename the class", size="sm", elem_id="rename")
                    with gr.Group():
                        self.words = gr.Textbox(
                            label="In prompts, call it",
                            info="Words in place of the name, separated by commas; may stay empty.",
                            elem_id="words",
                        )
                        self.set_words = gr.Button("Use these words", size="sm")
                with gr.Column(scale=2):
                    self.gallery = gallery("Images of the class", 6, 360, "class-gallery")
                    self.selected = gr.State(None)
                    with gr.Row():
                        self.remove = gr.Button("Remove the selected image", elem_id="remove")
                        self.remove_class = gr.Button("Remove the class", elem_id="remove-class")

    def _build_prompts(self) -> None:
        with gr.Accordion("Prompts and held-out images", open=False):
            with gr.Row():
                with gr.Column():
                    self.templates = gr.Textbox(
                        label="Prompt templates",
                        info="One a line, with {} where the class name goes.",
                        lines=3,
                        elem_id="templates",
                    )
                    self.set_templates = gr.Button("Use these templates", elem_id="set-templates")
                with gr.Column():
                    self.prompts = gr.HTML(elem_id="prompts")
            self.held_out = gr.Slider(10, 50, step=5, label="Held out", elem_id="held-out")
            self.start_over = gr.Button("Remove all classes and images")

    def _bind(self) -> None:
        with_boxes = [*self.outputs, self.archive, self.files, self.webcam, self.class_name]
        add_class = partial(gr.on, [self.add_class.click, self.class_name.submit])
        for trigger, handler, inputs, outputs in (
            (self.load_sample.click, self._add_data, [self.sample], with_boxes),
            (self.archive.upload, self._add_archive, [self.archive], with_boxes),
            (add_class, self._add_class, [self.class_name], with_boxes),
            (self.files.upload, self._add_files, [self.chosen, self.files], with_boxes),
            (self.add_photo.click, self._add_photo, [self.chosen, self.webcam], with_boxes),
            (self.chosen.input, self._open_class, [self.chosen], self.outputs),
            (self.gallery.select, self._select, [], [self.selected]),
            (self.remove.click, self._remove, [self.chosen, self.selected], self.outputs),
            (self.rename.click, self._rename, [self.chosen, self.new_name], self.outputs),
            (self.remove_class.click, self._remove_class, [self.chosen], self.outputs),
            (self.set_words.click, self._set_words, [self.chosen, self.words], self.outputs),
            (
                self.set_templates.click,
                self._set_templates,
                [self.chosen, self.templates],
                self.outputs,
            ),
            (self.held_out.release, self._set_held_out, [self.held_out], []),
            (self.start_over.click, self._start_over, [], self.outputs),
        ):
            self.on(trigger, handler, inputs, outputs)

    def _add_data(self, workspace: Workspace, source: str | Path) -> Update:
        added = workspace.add_data(source)
        return {**self.show(workspace), **self._say(*_describe(added))}

    def _add_archive(self, workspace: Workspace, archive: str) -> Update:
        try:
            return self._add_data(workspace, Path(archive))
        except cr.UserError as error:
            # the page keeps the sentence, and the box is free for another try
            return {**self._open_class(workspace), **self._say(str(error))}

    def _add_class(self, workspace: Workspace, name: str) -> Update:
        name = workspace.add_class(name)
        said = self._say(f"{name} is there: add images to it.")
        return {**self._open_class(workspace, name), **said, self.class_name: ""}

    def _add_files(self, workspace: Workspace, name: str | None, files: Sequence[str]) -> Update:
        if name is None:
            return self._say("Add a class first, then its images.")
        added = workspace.add_images(name, [Path(file) for file in files])
        return {**self._refresh(workspace, name), **self._say(*_describe(added))}

    def _add_photo(self, workspace: Workspace, name: str | None, photo: str | None) -> Update:
        if photo is None:
            raise cr.UserError("take a photo first")
        return self._add_files(workspace, name, [photo])

    def _select(self, workspace: Workspace, event: gr.SelectData) -> int:
        return event.index

    def _remove(self, workspace: Workspace, name: str | None, index: int | None) -> Update:
        pictures = workspace.pictures(name) if name else []
        if index is None or index >= len(pictures):
            raise cr.UserError("select an image first")
        workspace.remove_picture(pictures[index])
        return self._refresh(workspace, name)

    def _rename(self, workspace: Workspace, name: str | None, new: str) -> Update:
        if name is None:
            raise cr.UserError("there is no class to rename")
        return self._open_class(workspace, workspace.rename_class(name, new))

    def _remove_class(self, workspace: Workspace, name: str | None) -> Update:
        if name is not None:
            workspace.remove_class(name)
        return self._open_class(workspace)

    def _set_words(self, workspace: Workspace, name: str | None, words: str) -> Update:
        if name is not None:
            # a full stop would make a whole prompt of them
            chosen = tuple(filter(None, (word.strip().rstrip(".") for word in words.split(","))))
            workspace.set_prompts(workspace.templates, {**workspace.names, name: chosen})
        return self._open_class(workspace, name)

    def _set_templates(self, workspace: Workspace, name: str | None, templates: str) -> Update:
        lines = [line.strip() for line in templates.splitlines() if line.strip()]
        workspace.set_prompts(lines, workspace.names)
        templates = "\n".join(workspace.templates)
        return {**self._refresh(workspace, name), self.templates: templates}

    def _set_held_out(self, workspace: Workspace, percent: float) -> None:
        workspace.held_out = percent / 100
        workspace.save_state()

    def _start_over(self, workspace: Workspace) -> Update:
        workspace.clear_images()
        return self.show(workspace)

    def _say(self, *lines: str) -> Update:
        """Show lines in the page, and empty the boxes that files were put into."""
        emptied: Update = dict.fromkeys([self.archive, self.files, self.webcam])
        return {**emptied, self.message: rendering.messages(lines)}


def _describe(added: Added) -> list[str]:
    """Say what was added, what was there already, and what was left out."""
    lines = [f"Added {added.images} {'image' if added.images == 1 else 'images'}."]
    if added.known:
        lines.append(f"{added.known} were there already.")
    return [*lines, *added.notes, summarize_skipped(added.skipped)]
