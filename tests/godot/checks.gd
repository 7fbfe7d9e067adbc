# What the tests share. Each check prints one line; "N passed, M failed" is the last.
extends Node

const WAIT := 120.0 # seconds until something is taken to hang; far from what anything here takes

var model := OS.get_cmdline_user_args()[1]
var passed := 0
var failed := 0


func check(name: String, condition: bool, detail: Variant = "") -> void:
	if condition:
		passed += 1
		print("ok ", name)
	else:
		failed += 1
		print("FAILED ", name, ": ", detail)


func finish() -> void:
	print("%d passed, %d failed" % [passed, failed])
	get_tree().quit(0 if failed == 0 else 1)


# Frames go by until the condition holds.
func until(what: String, condition: Callable) -> bool:
	var start := Time.get_ticks_msec()
	while not condition.call():
		if Time.get_ticks_msec() - start > WAIT * 1000:
			check(what, false, "nothing happened in %d seconds" % WAIT)
			return false
		await get_tree().process_frame
	return true


# The standard deviation of the red channel: 0 for a flat image.
func spread(image: Image) -> float:
	var sum := 0.0
	var squares := 0.0
	var count := image.get_width() * image.get_height()
	for y in image.get_height():
		for x in image.get_width():
			var red := image.get_pixel(x, y).r
			sum += red
			squares += red * red
	return sqrt(maxf(0.0, squares / count - (sum / count) ** 2))
