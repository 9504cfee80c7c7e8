"""Every guard against foreign material: where it stands, how it is taken out, the test that then fails."""

from __future__ import annotations

from typing import NamedTuple

WEIGHTS, OUTSIDE, REGISTRY = (
    f"tests/unit/test_attacks_{part}.py::test_" for part in ("weights", "outside", "registry")
)
PICKLES = WEIGHTS + "pickled_code_is_not_run"
HEADERS = WEIGHTS + "a_header_that_fills_the_memory_is_refused"
DIRECTORY = WEIGHTS + "a_pipeline_that_names_code_or_files_elsewhere_is_refused"
NEVER = WEIGHTS + "the_code_never_asks_a_library_to_run_what_it_reads"
PACKED = WEIGHTS + "packed_entries_are_not_unpacked"
STRETCHED = WEIGHTS + "tensors_larger_than_their_file_are_refused"
RECIPE = REGISTRY + "a_recipe_that_register_did_not_write_is_refused"
MODEL = REGISTRY + "a_registered_model_that_is_not_ours_is_refused"
REQUEST = OUTSIDE + "absurd_requests_are_refused"
WEBHOOK = OUTSIDE + "a_webhook_to_metadata_or_this_machine_gets_nothing"
BOUNDS = "tests/unit/test_yaml_text.py::test_"
VIDEOS, VIDEO = "tests/unit/test_attacks_videos.py::test_", "vdmini_core/data/video.py"
RECORDED = "tests/unit/test_recorded_data.py::test_"


class Guard(NamedTuple):
    """One guard.

    Attributes:
        name: what it demands.
        attack: what it stops.
        file: where it stands.
        text: its text there, once.
        without: what stands in its place when it is taken out.
        test: id of the test; of several parameters one must fail.
    """

    name: str
    attack: str
    file: str
    text: str
    without: str
    test: str


def call(name: str, attack: str, file: str, line: str, test: str) -> Guard:
    """A guard that is one call on a line of its own."""
    return Guard(name, attack, file, line, "pass", test)


CHECKPOINT, SOURCE = "vdmini_core/convert/checkpoint.py", "vdmini_core/metrics/weights_source.py"
PIPELINE, DENOISER = "vdmini_core/models/pipeline_dir.py", "vdmini_core/models/denoiser.py"
PARTS = "vdmini_core/models/parts.py"
FILLED = "tests/unit/test_parts.py::test_weights_that_are_not_those_of_the_config_are_refused"
FOREIGN, SERVING = "vdmini_core/foreign.py", "tasks/serving_model.py"
VERSIONS, ADDRESS = "tasks/foreign_versions.py", "flows/webhook_address.py"
FOLDERS, YAML_TEXT = "tasks/s3_folders.py", "vdmini_core/yaml_text.py"

GUARDS = (
    Guard("weights_only in convert", "pickled code in a .ckpt", CHECKPOINT,
          "weights_only=True, mmap", "weights_only=False, mmap", PICKLES),
    Guard("weights_only for metric networks", "pickled code in weights", SOURCE,
          "weights_only=True", "weights_only=False", PICKLES),
    Guard("weights_only for recovery checkpoints", "pickled code in a checkpoint folder",
          "tasks/recovery_checkpoints.py", "weights_only=True", "weights_only=False", NEVER),
    Guard("weights_only for teacher checkpoints", "pickled code in a checkpoint folder",
          "vdmini_core/teacher/loop.py", "weights_only=True", "weights_only=False", NEVER),
    Guard("safetensors alone for pipelines", "pickled weights of a pipeline",
          "vdmini_core/models/registry.py", "use_safetensors=True", "use_safetensors=None", NEVER),
    Guard("safetensors alone for denoisers", "pickled weights of a denoiser", PARTS,
          "use_safetensors=True", "use_safetensors=None", NEVER),
    Guard("no pickles beside safetensors", "a .bin beside the weights", PIPELINE,
          "    if pickles:\n", "    if False:\n", DIRECTORY + "[pickle beside]"),
    call("header bound in convert", "safetensors header bomb", CHECKPOINT, "demand_header(path)",
         HEADERS + "[read_checkpoint]"),
    call("header bound for metric networks", "safetensors header bomb", SOURCE, "demand_header(path)",
         HEADERS + "[load_state_dict]"),
    call("header bound for pipelines", "safetensors header bomb", PIPELINE, "demand_header(folder / name)",
         HEADERS + "[check_directory]"),
    call("stored entries in convert", "zip bomb in a .ckpt", CHECKPOINT, "demand_stored(path)",
         PACKED + "[read_checkpoint]"),
    call("stored entries for metric networks", "zip bomb in weights", SOURCE, "demand_stored(path)",
         PACKED + "[load_state_dict]"),
    Guard("bytes of a download", "https answer without end", SOURCE,
          "if file.tell() > MAX_BYTES:", "if False:",
          "tests/unit/test_weights_source.py::test_an_answer_without_end_is_given_up"),
    call("held bytes in convert", "stride-0 tensor of 4 TB", CHECKPOINT, "demand_held(path, content)",
         STRETCHED + "[read_checkpoint]"),
    call("held bytes for metric networks", "stride-0 tensor of 4 TB", SOURCE, "demand_held(path, state)",
         STRETCHED + "[load_state_dict]"),
    Guard("known pipeline classes", "model_index.json of a foreign pipeline class", PIPELINE,
          "if not isinstance(name, str) or name not in PIPELINES:", "if name is None:",
          DIRECTORY + "[pipeline class]"),
    Guard("known classes of parts", "model_index.json naming os.system", PIPELINE,
          "if found not in allowed:", "if False:", DIRECTORY + "[part's class]"),
    call("known parts", "model_index.json naming another module", PIPELINE, "check_strangers(index, parts)",
         DIRECTORY + "[another part]"),
    call("plain configs of pipelines", "auto_map in config.json", PIPELINE, "check_configs(directory / part)",
         DIRECTORY + "[auto_map]"),
    Guard("kernels of the hub", "attn_implementation OWNER/NAME", FOREIGN,
          'any("/" in text for text in _texts(value))', "False", DIRECTORY + "[kernels of a part]"),
    Guard("configs that are objects", "a config that is a text: OWNER/NAME, asked of the hub", FOREIGN,
          "if not isinstance(config, dict):\n        raise", "if False:\n        raise",
          DIRECTORY + "[a repository for a config]"),
    Guard("configs that can be looked at", "a config of more bytes than are looked through", FOREIGN,
          "as error:  # the libraries would read it without a bound\n",
          "as error:\n        return\n", DIRECTORY + "[more than is looked through]"),
    Guard("the hub left alone", "whatever else makes a library ask it", PARTS,
          "constants.HF_HUB_OFFLINE = True", "constants.HF_HUB_OFFLINE = False",
          "tests/unit/test_parts.py::test_the_hub_is_not_asked_while_a_pipeline_loads"),
    Guard("words of a tokenizer", "tokenizer_config.json naming a file elsewhere", FOREIGN,
          "CODE_KEYS | (TOKENIZER_KEYS if path.name == TOKENIZER else frozenset())", "CODE_KEYS",
          DIRECTORY + "[words of a tokenizer]"),
    Guard("quantisers", "quantization_config, which brings code of other libraries", FOREIGN,
          ', "quantization_config"}', "}", DIRECTORY + "[quantised]"),
    Guard("layers within lists", "layers as lists of lists", FOREIGN,
          "for number in _numbers(value)", "for number in (value if isinstance(value, list) else [value])"
          " if isinstance(number, int)", DIRECTORY + "[layers within lists]"),
    Guard("layers of inner configs", "layers of a vision_config", FOREIGN,
          "for key, value in _pairs(config):", "for key, value in config.items():",
          DIRECTORY + "[layers of a part's part]"),
    Guard("rows of tables", "a schedule of a hundred million steps", FOREIGN,
          "(layers or table) and", "layers and", DIRECTORY + "[rows of a schedule]"),
    call("vocabularies", "a tokenizer that knows no word", PIPELINE, "check_words(directory / part)",
         "tests/unit/test_parts.py::test_a_tokenizer_without_words_is_refused"),
    Guard("whole weights", "weights that do not fill the network of the config", PARTS,
          'kinds = ("missing_keys", ', "kinds = (", FILLED + "[more_layers]"),
    call("sizes before memory", "a config of tables of terabytes", PARTS, "demand_filled(folder, cls, files)",
         "tests/unit/test_parts.py::test_tables_larger_than_the_file_are_refused"),
    call("frames that are numbers", "NaN in a decoder", "vdmini_core/models/pixels.py",
         'demand_numbers(video, "decoded frames")',
         "tests/unit/test_generate.py::test_frames_that_are_no_numbers_make_no_video"),
    Guard("code under a library's name", "PART/diffusers.py, custom code to diffusers", PIPELINE,
          "if code := [name for name in CODE if (folder / name).exists()]:", "if code := []:",
          DIRECTORY + "[code of a part]"),
    Guard("layers of a model", "layers_per_block: a billion", FOREIGN,
          "if (layers or table) and any(number > most for number in _numbers(value)):", "if False:",
          DIRECTORY + "[layers]"),
    Guard("adapters", "adapter_config.json naming another model", PIPELINE,
          "if (folder / ADAPTER).exists():", "if False:", DIRECTORY + "[adapter]"),
    call("own shards", "sharded index naming ../../x", PIPELINE, "demand_own_shards(index)",
         DIRECTORY + "[shard above]"),
    Guard("known denoiser classes", "config.json of a foreign class", DENOISER,
          "if not isinstance(name, str) or name not in DENOISERS:", "if name is None:",
          WEIGHTS + "a_denoiser_that_names_code_is_refused"),
    call("plain configs of denoisers", "auto_map in config.json", DENOISER, "check_configs(folder)",
         WEIGHTS + "a_denoiser_that_names_code_is_refused"),
    call("links of a pipeline", "a link to a secret in a model folder", "tasks/teacher.py",
         "demand_inside(source, files)", WEIGHTS + "links_out_of_a_pipeline_are_not_followed"),
    Guard("files that are copied", "code in a model folder", PIPELINE, "if p.suffix in kinds]",
          "if p.is_file()]", WEIGHTS + "the_hub_caches_own_links_are_followed_and_code_stays_behind"),
    Guard("bound of JSON files", "config.json of any size", FOREIGN,
          "else most + 1)\n    if most is not None and len(found) > most:", "else -1)\n    if False:",
          WEIGHTS + "a_config_that_no_reader_holds_is_refused"),
    Guard("regular files", "a pipe or /dev/zero as config.json", FOREIGN,
          "if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):", "if False:",
          WEIGHTS + "a_config_that_never_ends_is_refused"),
    Guard("bound of captions", "50 GB beside a video", "vdmini_core/data/captions.py",
          "read_bounded(path, JSON_BYTES)", "path.read_bytes()",
          "tests/unit/test_captions.py::test_a_text_beside_a_video_that_would_fill_the_memory_is_refused"),
    call("header bound for statistics", "safetensors header bomb", "vdmini_core/metrics/saved_stats.py",
         "demand_header(path)", "tests/unit/test_attacks_stats.py::test_a_header_bomb_is_refused"),
    Guard("containers of videos", "a playlist named .mp4 that has other files read", VIDEO,
          'if not CONTAINERS & set(container.format.name.split(",")):', "if False:",
          VIDEOS + "a_list_of_other_files_is_no_video"),
    Guard("pixels of a video", "a header that claims 65535 x 65535", VIDEO, "if size > MAX_PIXELS:",
          "if False:", VIDEOS + "a_header_that_claims_more_pixels_than_memory_has_is_refused"),
    Guard("depth of JSON", "JSON nested 100,000 deep", FOREIGN, "except RecursionError:",
          "except ZeroDivisionError:", OUTSIDE + "json_of_absurd_depth_is_refused"),
    Guard("names of bundled teachers", "teacher.bundled ../../x", "vdmini_core/bundled/__init__.py",
          "if name not in known:", "if not name:", WEIGHTS + "a_bundled_teacher_is_no_path"),
    Guard("index of clips", "shard file ../x in an index", "vdmini_core/data/shards.py",
          "if not all(is_plain_name(name) for name, _ in rows):", "if False:",
          OUTSIDE + "an_index_of_clips_names_files_beside_it_alone"),
    Guard("link-local and metadata addresses", "webhook to 169.254.169.254", ADDRESS,
          "if found.is_link_local or found in METADATA:", "if False:", WEBHOOK),
    Guard("this machine's addresses", "webhook to localhost", ADDRESS,
          'if os.environ.get(ALLOW_LOCAL) != "1":', "if False:", WEBHOOK),
    Guard("this machine by an address of its own", "webhook to the machine's address on its network", ADDRESS,
          "if made.getpeername()[0] == made.getsockname()[0]:", "if False:",
          OUTSIDE + "where_a_name_leads_is_seen_when_the_connection_stands"),
    Guard("schemes of webhooks", "webhook file:///etc/passwd", ADDRESS,
          'if parts.scheme not in ("http", "https") or not host:', "if False:", WEBHOOK),
    Guard("names of metadata services", "webhook to metadata.google.internal", ADDRESS,
          "if host.lower() in NAMES:", "if False:", WEBHOOK),
    call("the connected machine", "webhook's name resolves to this machine", ADDRESS,
         "demand_allowed(made.getpeername()[0])",
         OUTSIDE + "where_a_name_leads_is_seen_when_the_connection_stands"),
    Guard("no redirections", "webhook redirected to metadata", ADDRESS, "return None  # urllib",
          "return super().redirect_request(*_)  # urllib", OUTSIDE + "a_webhook_is_not_sent_on"),
    Guard("escaping in the report", "HTML in file names, titles and manifests", "vdmini_core/report/page.py",
          "autoescape=True", "autoescape=False", OUTSIDE + "names_in_the_report_are_text"),
    Guard("the report's policy", "a script that slipped into the report",
          "vdmini_core/report/templates/report.html", "default-src 'none'; ", "",
          OUTSIDE + "names_in_the_report_are_text"),
    Guard("notes on Prefect's pages", "HTML and Markdown in notes", "flows/compress.py",
          "- {markdown_line(note)}", "- {note}", OUTSIDE + "names_on_prefects_and_mlflows_pages_are_text"),
    Guard("tables on Prefect's pages", "HTML and Markdown in tables", "flows/compress.py",
          "markdown_line(cell) if", "cell if", OUTSIDE + "names_on_prefects_and_mlflows_pages_are_text"),
    Guard("notes on MLflow's pages", "HTML and Markdown in reasons", "tasks/decision_report.py",
          'markdown_line(f"{now()} {account()}: {text}")', 'f"{now()} {account()}: {text}"',
          OUTSIDE + "names_on_prefects_and_mlflows_pages_are_text"),
    Guard("kinds of pictures", "EPS that runs Ghostscript", "vdmini_core/data/images.py",
          "formats=FORMATS", "formats=None", OUTSIDE + "a_picture_that_starts_a_program_is_none"),
    Guard("size of pictures", "image bomb", "vdmini_core/data/images.py",
          "image.width * image.height > MOST_PIXELS", "False", OUTSIDE + "image_bombs_are_refused"),
    Guard("rows of a request", "a request of a million rows", SERVING, "0 < rows <= MOST_ROWS", "rows",
          REQUEST),
    Guard("numbers of a request", "seed 2^70, frames NaN", SERVING, "0 <= number < 2**63", "True", REQUEST),
    Guard("frames of a request", "10^9 frames", SERVING, "if not 2 <= frames <= most:", "if False:", REQUEST),
    Guard("arrays of a request", "an array of 3 TB", SERVING, "not 0 < value.size <= MOST_VALUES", "False",
          REQUEST),
    Guard("images of a request", "an image that is a number", SERVING,
          "if not isinstance(value, str | bytes | bytearray | memoryview):", "if False:", REQUEST),
    Guard("length of prompts", "a prompt of a million letters", SERVING, "if len(value) > LONGEST:",
          "if False:", OUTSIDE + "an_absurd_prompt_is_refused"),
    Guard("loader of a registered model", "MLflow model with a foreign loader", VERSIONS,
          "if loader := loader_of(folder):", 'if loader := "":', MODEL),
    Guard("files of a registered student", "pickle, code or link in a registered student", VERSIONS,
          "if unsafe := unsafe_files(student):", "if unsafe := ():", MODEL),
    Guard("source of a version", "version that points at file:///etc", VERSIONS,
          'if not source.startswith(SOURCES) or ".." in source:', "if False:",
          REGISTRY + "a_version_that_lies_elsewhere_is_not_fetched"),
    call("the server's answer", "version named ../../../tmp/x", "tasks/reproduce.py",
         "demand_plain_version(version, name)", REGISTRY + "a_servers_answer_is_no_path"),
    Guard("tags in a recipe", "!!python/object in params.yaml of a recipe", VERSIONS,
          'elif tag := getattr(event, "tag", None):', "elif tag := None:",
          RECIPE + "[object in YAML]"),
    Guard("aliases in a recipe", "billion laughs", VERSIONS, "if isinstance(event, AliasEvent):", "if False:",
          RECIPE + "[aliases]"),
    Guard("depth of a recipe", "YAML nested 500 deep", VERSIONS, "elif depth > DEEPEST:", "elif False:",
          RECIPE + "[depth]"),
    Guard("files of a recipe", "code, dvc.yaml or links in a recipe", VERSIONS,
          "if not known or path.is_symlink() or path.stat().st_size > JSON_BYTES:", "if False:",
          RECIPE + "[code]"),
    Guard("commit of a recipe", "commit --upload-pack=...", VERSIONS,
          'if not re.fullmatch(r"[0-9a-f]{7,64}|none",', 'if not re.match("",', RECIPE + "[option for git]"),
    Guard("addresses in S3", "s3://bucket/../../home", FOLDERS,
          'if not all(is_plain_name(part) for part in (bucket, *(prefix.split("/") if prefix else ()))):',
          "if False:", REGISTRY + "an_s3_address_that_leads_out_of_the_cache_is_refused"),
    Guard("keys in S3", "object ../../evil", FOLDERS,
          'if not all(is_plain_name(part) for part in name.split("/")):', "if False:",
          REGISTRY + "an_s3_key_that_leads_out_of_its_folder_is_refused"),
    call("files before promotion", "a pickle put into a registered version later", "tasks/promote.py",
         "look_at_files(job.root, candidate, LOOK_AGAIN, job.work)",
         REGISTRY + "files_that_changed_since_they_were_registered_are_not_promoted"),
    Guard("digest of a registered model", "weights, loader or requirements exchanged in the bucket", VERSIONS,
          "    if (found := files_digest(folder)) != registered:", "    found = registered\n    if False:",
          REGISTRY + "any_file_that_is_not_as_it_was_registered_is_refused"),
    Guard("files before their digest", "loader or requirements exchanged before `register` looked",
          "tasks/registered_files.py", "return tuple(sorted(wrong |", "return () and tuple(sorted(wrong |",
          REGISTRY + "files_exchanged_before_their_digest_was_taken_are_seen"),
    call("files before a rollback", "files of `previous` exchanged in the bucket", "tasks/rollback.py",
         "look(looked_at)  # a large model takes longer than a turn lasts",
         "tests/flows/test_promotion.py::test_no_way_back_to_files_that_are_not_as_registered"),
    Guard("size of objects", "object of 2^60 bytes", "tasks/s3.py",
          "if size > (free := shutil.disk_usage(target.parent).free):", "free = 0\n    if False:",
          REGISTRY + "an_object_larger_than_the_disk_is_not_begun"),
    Guard("safe YAML of params", "!!python/object in params.yaml", YAML_TEXT,
          '(yaml or YAML(typ="safe")).load', '(yaml or YAML(typ="unsafe")).load',
          REGISTRY + "objects_in_params_and_profiles_are_not_made"),
    Guard("depth of YAML", "thousands of brackets", YAML_TEXT,
          "if len(open_nodes) > MAX_DEPTH:", "if False:", BOUNDS + "too_deep_is_refused"),
    Guard("size of YAML with its aliases", "a few lines that stand for billions", YAML_TEXT,
          "if total > MAX_NODES:", "if False:", BOUNDS + "too_many_values_are_refused"),
    Guard("safe YAML before changes", "!!python/object kept by an edit", "tasks/project.py",
          "plain = read_yaml(path) if", "plain = read_yaml(path, _yaml()) if",
          REGISTRY + "objects_in_params_and_profiles_are_not_made"),
    Guard("names of profiles", "profile ../../evil", "tasks/project.py",
          'if re.fullmatch(r"[A-Za-z0-9._-]+", name) and path.is_file():', "if path.is_file():",
          REGISTRY + "names_of_profiles_and_workspaces_are_no_paths"),
    Guard("names of workspaces", "workspace ../../evil", "tasks/project.py",
          'if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):', "if False:",
          REGISTRY + "names_of_profiles_and_workspaces_are_no_paths"),
    Guard("plain names and hashes in DVC's lists", "path traversal in a bucket's list of files",
          "tasks/recorded_data.py", "if not (inside and _HASH.fullmatch(md5)):", "if False:",
          RECORDED + "a_list_that_leads_elsewhere_is_refused"),
    Guard("a hash of DVC's in a lock", "path traversal in a version's dvc.lock", "tasks/recorded_data.py",
          "isinstance(found, str) and _FOLDER_HASH.fullmatch(found)", "True",
          RECORDED + "a_lock_that_names_no_folder_of_dvcs_names_none"),
)  # fmt: skip
