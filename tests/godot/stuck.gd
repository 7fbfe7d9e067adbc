# With a library that never gets on (stuck.c): frames go by all the same, so nothing that the plugin does in them waits
# for the model. The third user argument is the library's folder.
extends "res://checks.gd"

# What the main thread may call; loading and destroying a model are for other threads.
const QUICK := ["diffusion_last_error_message", "diffusion_sample_params_init", "diffusion_sample_submit",
	"diffusion_job_poll", "diffusion_job_progress", "diffusion_job_wait", "diffusion_job_cancel", "diffusion_job_fetch",
	"diffusion_job_preview", "diffusion_job_destroy"]

var folder := OS.get_cmdline_user_args()[2]


func _ready() -> void:
	var progress := []
	var failed := []
	var generator := DiffusionGenerator.new()
	generator.model_path = model
	generator.progress.connect(func(id: int, _done: int, _total: int) -> void: progress.append(id))
	generator.failed.connect(func(id: int, code: int, _message: String) -> void: failed.append([id, code]))
	add_child(generator)
	var kept := generator.generate(1)
	var dropped := generator.generate(2)
	var texture := DiffusionTexture.new()
	texture.model_path = model
	await go_by("while the model loads", 30)
	check("both are pending", generator.pending_count() == 2 and texture.is_generating())
	generator.cancel(dropped)
	await until("one is cancelled", func() -> bool: return failed.size() == 1)
	check("a request of a model that loads is cancelled", failed == [[dropped, ERR_SKIP]], failed)
	var short_lived := DiffusionGenerator.new()
	short_lived.model_path = "/another/model"
	add_child(short_lived)
	short_lived.generate(1)
	await get_tree().process_frame
	short_lived.free()
	check("a generator is freed while its model loads", true)

	let_through("load")
	await until("progress is told", func() -> bool: return kept in progress)
	await go_by("while a job computes", 30)
	check("it is still pending", generator.pending_count() == 1 and failed.size() == 1)
	check("a job that does not end can be cancelled", generator.cancel(kept) == OK)
	await go_by("while it goes on all the same", 30)
	generator.free()
	texture = null
	await go_by("while the model is destroyed", 30)
	await until("the model is being destroyed", func() -> bool: return "other diffusion_destroy" in calls())
	let_through("destroy")

	var on_main := {}
	for call: String in calls():
		if call.begins_with("main "):
			on_main[call.trim_prefix("main ")] = true
	check("the main thread calls what never waits, and nothing else",
		on_main.keys().all(func(name: String) -> bool: return name in QUICK), on_main.keys())
	check("and is seen to call it", on_main.has("diffusion_job_poll") and on_main.has("diffusion_job_destroy"))
	finish()


func go_by(when: String, frames: int) -> void:
	for frame in frames:
		await get_tree().process_frame
	check("%d frames go by %s" % [frames, when], true)


func let_through(what: String) -> void:
	FileAccess.open(folder.path_join(what), FileAccess.WRITE).close()


func calls() -> PackedStringArray:
	return FileAccess.get_file_as_string(folder.path_join("calls")).split("\n", false)
