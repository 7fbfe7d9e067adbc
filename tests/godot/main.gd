# Runs the script that the first user argument names; the second is the folder of a model.
extends Node


func _ready() -> void:
	var script: GDScript = load("res://%s.gd" % OS.get_cmdline_user_args()[0])
	add_child(script.new())
