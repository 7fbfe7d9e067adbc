# The game ends while the plugin loads or computes: after as many frames as the third user argument says.
extends "res://checks.gd"


func _ready() -> void:
	var generator := DiffusionGenerator.new()
	generator.model_path = model
	add_child(generator)
	generator.generate(1, 1000)
	var texture := DiffusionTexture.new()
	texture.model_path = model
	for frame in int(OS.get_cmdline_user_args()[2]):
		await get_tree().process_frame
	check("quits after %s frames" % OS.get_cmdline_user_args()[2], generator.pending_count() == 1)
	finish()
