# The plugin without a screen: what it makes, cancels and refuses, its end at any moment, and how long it keeps the main
# thread.
extends "res://checks.gd"

const STEPS := 4


func _ready() -> void:
	await generates()
	await many()
	await cancels()
	await refuses()
	await untyped()
	await ends_at_any_moment()
	await textures()
	await scene_changes()
	await never_waits()
	await load_cycles()
	await plugin_cycles()
	finish()


func new_generator(path := model) -> DiffusionGenerator:
	var generator := DiffusionGenerator.new()
	generator.model_path = path
	add_child(generator)
	return generator


# Everything that a generator said, by request.
class Record:
	var progress := {}
	var previews := {}
	var finished := {}
	var failed := {}

	func _init(generator: DiffusionGenerator) -> void:
		generator.progress.connect(func(id: int, done: int, total: int) -> void:
			progress[id] = progress.get(id, []) + [[done, total]])
		generator.preview.connect(func(id: int, image: Image) -> void: previews[id] = previews.get(id, []) + [image])
		generator.finished.connect(func(id: int, image: Image) -> void: finished[id] = finished.get(id, []) + [image])
		generator.failed.connect(func(id: int, code: int, message: String) -> void:
			failed[id] = failed.get(id, []) + [[code, message]])

	func ends(id: int) -> int:
		return finished.get(id, []).size() + failed.get(id, []).size()


func ended(generator: DiffusionGenerator) -> void:
	await until("requests end", func() -> bool: return generator.pending_count() == 0)


func generates() -> void:
	var generator := new_generator()
	var record := Record.new(generator)
	var id := generator.generate(7, STEPS)
	check("a request has a number", id == 1, id)
	check("and is pending", generator.pending_count() == 1)
	await ended(generator)
	check("it finishes once", record.finished.get(id, []).size() == 1 and record.ends(id) == 1, record.failed)
	var image: Image = record.finished[id][0]
	check("with an image of the model's size", image.get_size() == Vector2i(32, 32), image.get_size())
	check("in RGBA", image.get_format() == Image.FORMAT_RGBA8, image.get_format())
	check("that is not flat", spread(image) > 0.01, spread(image))
	var steps: Array = record.progress.get(id, [])
	check("progress counts up to the steps", steps.all(func(step: Array) -> bool:
		return step[0] > 0 and step[0] <= STEPS and step[1] == STEPS), steps)
	await ended(generator)
	var again := generator.generate(7, STEPS)
	var other := generator.generate(8, STEPS)
	await ended(generator)
	check("the same seed gives the same image", record.finished[again][0].get_data() == image.get_data())
	check("another seed another", record.finished[other][0].get_data() != image.get_data())

	generator.method = 4
	var unipc := generator.generate(7, STEPS)
	await ended(generator)
	check("another method another", record.finished[unipc][0].get_data() != image.get_data())

	# So many steps that frames go by between them
	generator.method = 1
	var slow := generator.generate(7, 100)
	await ended(generator)
	check("progress is told", record.progress.get(slow, []).size() > 2, record.progress.get(slow))
	check("and previews", record.previews.get(slow, []).size() > 2, record.previews.get(slow, []).size())
	var last: Image = record.previews[slow][-1]
	check("that have the image's size", last.get_size() == Vector2i(32, 32) and last.get_format() == Image.FORMAT_RGBA8)
	check("and come to look like it", difference(last, record.finished[slow][0]) <
		difference(record.previews[slow][0], record.finished[slow][0]))
	generator.previews = false
	var plain := generator.generate(9, 30)
	await ended(generator)
	check("previews can be left out", not record.previews.has(plain) and record.finished.has(plain))
	generator.queue_free()


func difference(a: Image, b: Image) -> float:
	var sum := 0.0
	var x := a.get_data()
	var y := b.get_data()
	for i in x.size():
		sum += absf(x[i] - y[i])
	return sum


func many() -> void:
	var generator := new_generator()
	var record := Record.new(generator)
	var ids := range(12).map(func(seed: int) -> int: return generator.generate(seed, STEPS))
	check("twelve are pending", generator.pending_count() == 12)
	await ended(generator)
	var images := {}
	for id: int in ids:
		if record.finished.has(id):
			images[record.finished[id][0].get_data()] = true
	check("twelve distinct images come of it", images.size() == 12, images.size())
	generator.queue_free()


func cancels() -> void:
	var generator := new_generator()
	var record := Record.new(generator)
	var early := generator.generate(1, 1000)
	check("cancel before the model is there", generator.cancel(early) == OK)
	check("a second cancel finds nothing", generator.cancel(early) == ERR_DOES_NOT_EXIST)
	check("nor does one of another number", generator.cancel(99) == ERR_DOES_NOT_EXIST)
	await ended(generator)
	check("it ends as skipped", record.failed.get(early, [[]])[0][0] == ERR_SKIP and record.ends(early) == 1, record.failed)

	var running := generator.generate(1, 1000)
	var beside := generator.generate(2, STEPS)
	await until("it runs", func() -> bool: return record.progress.has(running))
	check("cancel while it runs", generator.cancel(running) == OK)
	await ended(generator)
	check("that ends as skipped too", record.failed.get(running, [[]])[0][0] == ERR_SKIP, record.failed)
	check("and the one beside it finishes", record.finished.has(beside) and record.ends(beside) == 1)

	# A handler that cancels, one that asks for more
	var chain := []
	generator.progress.connect(func(id: int, _done: int, _total: int) -> void: generator.cancel(id), CONNECT_ONE_SHOT)
	generator.failed.connect(func(_id: int, _code: int, _message: String) -> void:
		chain.append(generator.generate(3, STEPS)), CONNECT_ONE_SHOT)
	var first := generator.generate(1, 1000)
	await ended(generator)
	check("a handler may cancel", record.failed.get(first, [[]])[0][0] == ERR_SKIP)
	check("and ask for more", chain.size() == 1 and record.finished.has(chain[0]))
	generator.queue_free()


func fails(name: String, generator: DiffusionGenerator, steps: int, code: int, part: String) -> void:
	var record := Record.new(generator)
	var id := generator.generate(1, steps)
	await ended(generator)
	var said: Array = record.failed.get(id, [[-1, ""]])[0]
	check(name, said[0] == code and part in said[1] and record.ends(id) == 1, said)


func refuses() -> void:
	var nowhere := new_generator("/nowhere/model")
	await fails("a folder that is not there", nowhere, STEPS, ERR_FILE_CANT_OPEN, "/nowhere/model")
	await fails("and again", nowhere, STEPS, ERR_FILE_CANT_OPEN, "/nowhere/model")
	nowhere.model_path = model
	var record := Record.new(nowhere)
	nowhere.generate(1, STEPS)
	await ended(nowhere)
	check("the generator works on", record.finished.size() == 1, record.failed)
	await fails("no folder", new_generator(""), STEPS, ERR_UNCONFIGURED, "model_path")
	await fails("a folder without a model", new_generator("res://"), STEPS, ERR_FILE_CORRUPT, "is no checkpoint")
	await fails("steps below 0", nowhere, -1, ERR_INVALID_PARAMETER, "steps is -1")
	await fails("more steps than the model has", nowhere, 1001, ERR_INVALID_PARAMETER, "steps is 1001")
	await fails("more than 32 bits of them", nowhere, 1 << 40, ERR_INVALID_PARAMETER, "steps")
	nowhere.method = 77
	await fails("an unknown method", nowhere, STEPS, ERR_INVALID_PARAMETER, "method is 77")
	nowhere.method = 1
	nowhere.threads = -3
	await fails("threads below 0", nowhere, STEPS, ERR_INVALID_PARAMETER, "num_threads is -3")
	nowhere.threads = 1
	nowhere.device = 2
	await fails("a device that is not there", nowhere, STEPS, ERR_UNAVAILABLE, "CUDA")
	for child in get_children():
		child.queue_free()


# As scripts without types call it, and what the inspector sees.
func untyped() -> void:
	var generator: Variant = ClassDB.instantiate("DiffusionGenerator")
	add_child(generator)
	check("steps may be left out", ClassDB.class_get_method_argument_count("DiffusionGenerator", "generate") == 2)
	generator.set("model_path", model)
	check("properties are set by name", generator.get("model_path") == model)
	check("threads is 1 to begin with", generator.get("threads") == 1)
	check("a number that is not whole is taken as one", generator.call("generate", 3.0, 4) == 1)
	check("numbers count up", generator.call("generate", 5) == 2)
	check("cancels by name", generator.call("cancel", 2) == OK)
	var record := Record.new(generator)
	await ended(generator)
	check("that finishes too", record.finished.size() == 1 and record.failed.size() == 1, record.failed)
	generator.queue_free()


# Nodes are freed while they load, wait and compute, by others and by their own handlers.
func ends_at_any_moment() -> void:
	for frames in [0, 1, 2, 5, 20]:
		var generator := new_generator()
		generator.generate(1, 1000)
		for frame in frames:
			await get_tree().process_frame
		generator.free()
	check("freed after so many frames", true)

	var generator := new_generator()
	generator.generate(1, 1000)
	generator.generate(2, 1000)
	generator.progress.connect(func(_id: int, _done: int, _total: int) -> void: generator.queue_free())
	var id := generator.get_instance_id()
	await until("a handler frees its generator", func() -> bool: return not is_instance_id_valid(id))
	check("freed by its own handler", not is_instance_id_valid(id))

	var away := new_generator()
	var record := Record.new(away)
	id = away.generate(1, STEPS)
	remove_child(away)
	for frame in 5:
		await get_tree().process_frame
	check("outside the tree nothing is told", record.ends(id) == 0)
	add_child(away)
	await ended(away)
	check("back in it, it is", record.finished.has(id))
	away.free()


func textures() -> void:
	var texture := DiffusionTexture.new()
	var changes := [0]
	var images: Array[Image] = []
	texture.changed.connect(func() -> void: changes[0] += 1)
	texture.finished.connect(func(image: Image) -> void: images.append(image))
	texture.seed = 7
	texture.steps = STEPS
	check("without a folder nothing begins", not texture.is_generating())
	texture.model_path = model
	check("with one it does", texture.is_generating())
	await until("a texture finishes", func() -> bool: return images.size() == 1)
	check("the texture has an image", texture.get_size() == Vector2(32, 32), texture.get_size())
	check("that is not flat", spread(texture.get_image()) > 0.01)
	check("and says that it changed", changes[0] >= 1)
	texture.seed = 8
	texture.seed = 9
	await until("it finishes again", func() -> bool: return images.size() == 2)
	check("another seed gives another image", images[1].get_data() != images[0].get_data())
	check("several changes give one", not texture.is_generating())
	texture.seed = 7
	await until("and again", func() -> bool: return images.size() == 3)
	check("the same seed the same", images[2].get_data() == images[0].get_data())

	var failure := []
	texture.failed.connect(func(code: int, message: String) -> void: failure.assign([code, message]))
	texture.steps = 5000
	await until("a texture fails", func() -> bool: return failure.size() == 2)
	check("a texture says what is wrong", failure[0] == ERR_INVALID_PARAMETER and "5000" in failure[1], failure)
	check("and makes nothing", images.size() == 3)
	failure.clear()
	texture.steps = 1000
	await get_tree().process_frame
	texture.cancel()
	await until("a texture is cancelled", func() -> bool: return failure.size() == 2)
	check("a texture is cancelled", failure[0] == ERR_SKIP, failure)

	texture.steps = STEPS
	await until("it goes on", func() -> bool: return images.size() == 4)
	ResourceSaver.save(texture, "user://texture.tres")
	var loaded: DiffusionTexture = ResourceLoader.load("user://texture.tres", "", ResourceLoader.CACHE_MODE_IGNORE)
	check("it is saved and loaded", loaded.seed == 7 and loaded.steps == STEPS and loaded.model_path == model)
	loaded.finished.connect(func(image: Image) -> void: images.append(image))
	await until("a loaded one is made", func() -> bool: return images.size() == 5)
	check("as it was", images.size() == 5 and images[4].get_data() == images[0].get_data())

	for frames in [0, 1, 3]: # let go while it is made
		var short_lived := DiffusionTexture.new()
		short_lived.model_path = model
		short_lived.steps = 1000
		for frame in frames:
			await get_tree().process_frame
	check("let go at any moment", true)


# A scene with work under way is replaced, ten times.
func scene_changes() -> void:
	for i in 10:
		var scene := Node.new()
		add_child(scene)
		var generator := DiffusionGenerator.new()
		generator.model_path = model
		scene.add_child(generator)
		generator.generate(i, 1000)
		var sprite := Sprite2D.new()
		var texture := DiffusionTexture.new()
		texture.model_path = model
		sprite.texture = texture
		scene.add_child(sprite)
		for frame in i:
			await get_tree().process_frame
		scene.queue_free()
		await get_tree().process_frame
	check("scenes are replaced while they generate", true)


# What the plugin does on the main thread in each frame, while the model computes all the time. That it never waits
# for the model is what stuck.gd shows; here is how long its calls take, and how often they gave up the processor: a
# lock that the model's thread held for a moment may do that now and then, waiting for the model would each time.
func never_waits() -> void:
	var generator := DiffusionGenerator.new() # not in the tree: polled here, by hand
	generator.model_path = model
	var pending := {}
	generator.finished.connect(func(id: int, _image: Image) -> void: pending.erase(id))
	generator.failed.connect(func(id: int, _code: int, _message: String) -> void: pending.erase(id))
	var times := []
	var waits := 0
	var made := 0
	while times.size() < 400:
		var before := times_slept()
		var start := Time.get_ticks_usec()
		if pending.size() < 3:
			made += 1
			pending[generator.generate(made, 10)] = true
		if times.size() % 50 == 49:
			generator.cancel(pending.keys()[0])
		generator.poll()
		times.append(Time.get_ticks_usec() - start)
		if times_slept() > before:
			waits += 1
		await get_tree().process_frame
	generator.free()
	times.sort()
	print("plugin on the main thread, us a frame: median %d, 99th percentile %d, most %d; it slept in %d of %d frames" %
		[times[times.size() / 2], times[times.size() * 99 / 100], times[-1], waits, times.size()])
	check("images are made meanwhile", made > 3, made)
	check("the main thread does not wait for them", waits < times.size() / 10, waits)


# How often this thread has waited for something.
func times_slept() -> int:
	var status := FileAccess.open("/proc/thread-self/status", FileAccess.READ)
	while not status.eof_reached():
		var line := status.get_line()
		if line.begins_with("voluntary_ctxt_switches:"):
			return int(line.get_slice(":", 1))
	return 0


func load_cycles() -> void:
	var count := 0
	for i in 100:
		var generator := new_generator()
		var record := Record.new(generator)
		generator.generate(i, 1)
		await ended(generator)
		count += record.finished.size()
		generator.free()
	check("a hundred generators load, generate and go", count == 100, count)


func plugin_cycles() -> void:
	const EXTENSION := "res://addons/diffusion/diffusion.gdextension"
	var good := 0
	for i in 100:
		if GDExtensionManager.unload_extension(EXTENSION) == GDExtensionManager.LOAD_STATUS_OK \
				and not ClassDB.class_exists("DiffusionGenerator") \
				and GDExtensionManager.load_extension(EXTENSION) == GDExtensionManager.LOAD_STATUS_OK \
				and ClassDB.class_exists("DiffusionGenerator"):
			good += 1
	check("the plugin is unloaded and loaded a hundred times", good == 100, good)
	var generator: Variant = ClassDB.instantiate("DiffusionGenerator")
	generator.set("model_path", model)
	add_child(generator)
	var made := []
	generator.connect("finished", func(_id: int, image: Image) -> void: made.append(image))
	generator.call("generate", 1, STEPS)
	await until("it works afterwards", func() -> bool: return made.size() == 1)
	check("and works afterwards", made.size() == 1)
	generator.free()
