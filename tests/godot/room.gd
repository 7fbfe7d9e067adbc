# The demo's room on a screen: its textures are made, distinct and not flat, its surfaces show them, and the frames that
# go by meanwhile are timed. User arguments: room, the model, the picture to write, and the longest that a frame may take
# in milliseconds at the 99th percentile, or 0.
extends "res://checks.gd"

const FRAMES := 500 # the least to be timed


func _ready() -> void:
	var arguments := OS.get_cmdline_user_args()
	var scene: PackedScene = load("res://room/room.tscn")
	var room: Node3D = scene.instantiate()
	room.get_node("Generator").model_path = model
	var painting: DiffusionTexture = room.get_node("Painting").mesh.material.albedo_texture
	painting.model_path = model
	var done := [false]
	room.complete.connect(func() -> void: done[0] = true)
	add_child(room)
	await settle(2)
	var before := get_viewport().get_texture().get_image()

	# The processor draws here, and computes the model as well: it gets fewer pixels than a screen has.
	var whole := get_window().size
	get_window().size = Vector2i(480, 270)
	get_viewport().msaa_3d = Viewport.MSAA_DISABLED
	get_viewport().scaling_3d_scale = 0.5
	await settle(2)
	# The room alone is made in too few frames to speak of one in a hundred: then the painting is painted over and over.
	var shown := painting.seed
	var frames := await frame_times(func(count: int) -> bool:
		if done[0] and not painting.is_generating():
			painting.seed += 1
		return done[0] and count >= FRAMES)
	check("the room is completed", done[0], room.get_node("Status").text)
	var p99 := tell("while textures are made", frames)
	painting.seed = shown
	await until("the painting is what it was", func() -> bool: return not painting.is_generating())
	tell("afterwards", await frame_times(func(count: int) -> bool: return count >= FRAMES))
	var limit := float(arguments[3])
	check("frames go by meanwhile", frames.size() > room.SURFACES.size(), frames.size())
	if limit > 0:
		check("99 of 100 frames take less than %d ms" % limit, p99 < limit, p99)

	var distinct := {}
	for surface: String in room.SURFACES:
		if room.textures.has(surface):
			var image: Image = room.textures[surface].get_image()
			check("%s is not flat" % surface, spread(image) > 0.01, spread(image))
			distinct[image.get_data()] = true
	check("the textures are distinct", distinct.size() == room.SURFACES.size(), distinct.size())
	check("the painting is not flat", painting.get_width() == 32 and spread(painting.get_image()) > 0.01)
	var colours := painting.get_image()
	painting.seed += 1
	await until("the painting is painted over", func() -> bool: return not painting.is_generating())
	check("another seed shows another painting", painting.get_image().get_data() != colours.get_data())
	painting.seed -= 1
	await until("and back", func() -> bool: return not painting.is_generating())

	get_window().size = whole
	get_viewport().msaa_3d = Viewport.MSAA_4X
	get_viewport().scaling_3d_scale = 1.0
	await settle(5)
	var after := get_viewport().get_texture().get_image()
	after.save_png(arguments[2])
	check("the picture is of the window's size", after.get_size() == before.get_size(), after.get_size())
	check("the room looks another than without them", mean_difference(before, after) > 0.02,
		mean_difference(before, after))
	# Patches of the picture: floor, back wall, a crate. Lit surfaces without texture vary by less.
	for patch: Rect2i in [Rect2i(560, 600, 96, 96), Rect2i(640, 250, 64, 64)]:
		var cut := after.get_region(patch)
		check("the picture is textured at %s" % patch.position, spread(cut) > 0.012, spread(cut))
	finish()


# How long each frame took, in milliseconds, until the condition holds of their count.
func frame_times(condition: Callable) -> Array:
	var frames := []
	var last := Time.get_ticks_usec()
	var start := last
	while not condition.call(frames.size()) and last - start < WAIT * 1e6:
		await get_tree().process_frame
		var now := Time.get_ticks_usec()
		frames.append((now - last) / 1000.0)
		last = now
	return frames


# Prints them and returns the 99th percentile.
func tell(name: String, frames: Array) -> float:
	frames.sort()
	var p99: float = frames[frames.size() * 99 / 100]
	print("%d frames %s, ms: median %.1f, 99th percentile %.1f, most %.1f" %
		[frames.size(), name, frames[frames.size() / 2], p99, frames[-1]])
	return p99


func settle(frames: int) -> void:
	for frame in frames:
		await RenderingServer.frame_post_draw


func mean_difference(a: Image, b: Image) -> float:
	var small_a: Image = a.duplicate()
	var small_b: Image = b.duplicate()
	small_a.resize(64, 36)
	small_b.resize(64, 36)
	var sum := 0.0
	for y in 36:
		for x in 64:
			var difference := small_a.get_pixel(x, y) - small_b.get_pixel(x, y)
			sum += (absf(difference.r) + absf(difference.g) + absf(difference.b)) / 3
	return sum / (64 * 36)
