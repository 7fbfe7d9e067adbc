# A library that cannot be used: the third user argument is the Error, the fourth a part of the message.
extends "res://checks.gd"


func _ready() -> void:
	var said := []
	var generator := DiffusionGenerator.new()
	generator.model_path = model
	generator.failed.connect(func(_id: int, code: int, message: String) -> void: said.assign([code, message]))
	add_child(generator)
	generator.generate(1)
	await until("it fails", func() -> bool: return said.size() == 2)
	var arguments := OS.get_cmdline_user_args()
	check("refused with " + arguments[3], said[0] == int(arguments[2]) and arguments[3] in said[1], said)
	finish()
