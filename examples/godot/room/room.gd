# A room whose walls, floor and crates get textures one by one as DiffusionGenerator makes them. Until then a surface is
# plain; while its texture is made, it shows what that is estimated to become.
#
# The painting is the other way to use the plugin: a DiffusionTexture, set up in the scene file and with no code.
extends Node3D

signal complete # all textures are made, or have failed

const STEPS := 24
const AT_A_TIME := 2 # more would share the same threads, and all would be done later

const BLANK := Color(0.42, 0.43, 0.46)

# What gets a texture: its seed, which decides how it looks, and how many metres one repeat covers.
const SURFACES := {
	"back wall": {"seed": 21, "metres": 1.6},
	"floor": {"seed": 61, "metres": 1.5},
	"side walls": {"seed": 1, "metres": 1.6},
	"wood": {"seed": 24, "metres": 0.9},
	"wooden crate": {"seed": 15, "metres": 1.0},
	"red crate": {"seed": 68, "metres": 1.0},
	"green crate": {"seed": 31, "metres": 1.0},
	"blue crate": {"seed": 25, "metres": 1.0},
	"carpet": {"seed": 36, "metres": 1.1},
	"column": {"seed": 42, "metres": 1.0},
	"ceiling": {"seed": 3, "metres": 1.6},
}

@onready var generator: DiffusionGenerator = $Generator
@onready var status: Label = $Status

var materials := {} # by surface
var textures := {} # by surface
var waiting: Array = SURFACES.keys()
var requests := {} # surface by request
var made := 0


func _ready() -> void:
	for surface: String in SURFACES:
		materials[surface] = plain(SURFACES[surface].metres)
	build()
	generator.preview.connect(_on_preview)
	generator.finished.connect(_on_finished)
	generator.failed.connect(_on_failed)
	for i in AT_A_TIME:
		ask_for_next()


# ---- Textures

func ask_for_next() -> void:
	if waiting.is_empty():
		if requests.is_empty():
			status.text = "%d textures made" % made
			complete.emit()
		return
	var surface: String = waiting.pop_front()
	requests[generator.generate(SURFACES[surface].seed, STEPS)] = surface
	tell()


func _on_preview(id: int, image: Image) -> void:
	show_on(requests[id], image)


func _on_finished(id: int, image: Image) -> void:
	var surface: String = requests[id]
	requests.erase(id)
	made += 1
	show_on(surface, image)
	# Its own brightness, taken as height, gives the surface some relief.
	var relief: Image = image.duplicate()
	relief.clear_mipmaps()
	relief.bump_map_to_normal_map(1.3)
	relief.generate_mipmaps()
	materials[surface].normal_texture = ImageTexture.create_from_image(relief)
	ask_for_next()


func _on_failed(id: int, _code: int, message: String) -> void:
	requests.erase(id)
	status.text = message
	ask_for_next()


func show_on(surface: String, image: Image) -> void:
	image.generate_mipmaps()
	if textures.has(surface):
		textures[surface].update(image)
		return
	textures[surface] = ImageTexture.create_from_image(image)
	materials[surface].albedo_texture = textures[surface]
	materials[surface].albedo_color = Color(1.25, 1.25, 1.25) # the model knows dark rooms


func tell() -> void:
	status.text = "%d of %d textures made, now: %s" % [made, SURFACES.size(), ", ".join(requests.values())]


# ---- The room, in metres

func plain(metres: float) -> StandardMaterial3D:
	var material := StandardMaterial3D.new()
	material.albedo_color = BLANK
	material.roughness = 0.85
	material.metallic_specular = 0.3
	material.normal_enabled = true # from the start: to change it later is to compile a shader in mid-game
	material.uv1_scale = Vector3.ONE / metres
	material.uv1_offset = Vector3(0.5, 0.5, 0)
	material.texture_filter = BaseMaterial3D.TEXTURE_FILTER_NEAREST_WITH_MIPMAPS
	return material


# A box whose texture coordinates are metres from the middle of each side.
func box(surface: String, at: Vector3, size: Vector3, turn := 0.0) -> MeshInstance3D:
	var tool := SurfaceTool.new()
	tool.begin(Mesh.PRIMITIVE_TRIANGLES)
	tool.set_material(materials[surface])
	for axis in 3:
		var across := 2 if axis == 0 else 0
		var along := 2 if axis == 1 else 1
		for side in [-1.0, 1.0]:
			var normal := Vector3.ZERO
			normal[axis] = side
			var corners: Array[Vector3] = []
			for corner: Vector2 in [Vector2(-1, -1), Vector2(1, -1), Vector2(1, 1), Vector2(-1, 1)]:
				var point := normal
				point[across] = corner.x
				point[along] = corner.y
				corners.append(point * size / 2)
			if (corners[1] - corners[0]).cross(corners[2] - corners[0]).dot(normal) > 0:
				corners.reverse() # the front is where the corners go clockwise
			for index in [0, 1, 2, 0, 2, 3]:
				tool.set_normal(normal)
				tool.set_uv(Vector2(corners[index][across], -corners[index][along]))
				tool.add_vertex(corners[index])
	tool.generate_tangents()
	var instance := MeshInstance3D.new()
	instance.mesh = tool.commit()
	instance.position = at
	instance.rotation_degrees.y = turn
	add_child(instance)
	return instance


# A crate stands on at; its edges are of wood.
func crate(surface: String, at: Vector3, size: float, turn := 0.0) -> void:
	var centre := at + Vector3.UP * size / 2
	var body := box(surface, centre, Vector3.ONE * size, turn)
	var edge := size * 0.09
	var out := (size - edge) / 2 + 0.012
	for axis in 3:
		for corner in 4:
			var offset := Vector3.ZERO
			offset[(axis + 1) % 3] = out if corner & 1 else -out
			offset[(axis + 2) % 3] = out if corner & 2 else -out
			var length := Vector3.ONE * edge
			length[axis] = size + 0.024
			var bar := box("wood", Vector3.ZERO, length)
			bar.reparent(body, false)
			bar.position = offset


func build() -> void:
	box("floor", Vector3(0, -0.1, -1), Vector3(8, 0.2, 10))
	box("ceiling", Vector3(0, 3.3, -1), Vector3(8, 0.2, 10))
	box("back wall", Vector3(0, 1.6, -5.1), Vector3(8, 3.4, 0.2))
	box("side walls", Vector3(4.1, 1.6, -1), Vector3(0.2, 3.4, 10))
	box("side walls", Vector3(-4.1, 1.6, -1), Vector3(0.2, 3.4, 10))
	for z in [-4.0, -2.0, 0.0, 2.0]: # beams and skirting
		box("wood", Vector3(0, 3.1, z), Vector3(8, 0.22, 0.22))
	box("wood", Vector3(0, 0.1, -4.97), Vector3(8, 0.2, 0.08))
	for x in [3.97, -3.97]:
		box("wood", Vector3(x, 0.1, -1), Vector3(0.08, 0.2, 10))
	box("carpet", Vector3(0.2, 0.012, -1.6), Vector3(3.3, 0.024, 2.2), 4)
	for x in [-3.3, 3.3]:
		column(Vector3(x, 0, -4.4))

	crate("wooden crate", Vector3(2.0, 0, -3.6), 1.1, 8)
	crate("blue crate", Vector3(3.2, 0, -2.7), 0.95, -12)
	crate("green crate", Vector3(2.05, 1.1, -3.6), 0.8, -14)
	crate("red crate", Vector3(2.2, 0, -1.9), 0.7, 31)
	crate("red crate", Vector3(-3.1, 0, -2.6), 1.0, 12)
	crate("wooden crate", Vector3(-2.9, 0, -1.3), 0.7, -20)

	# The painting's frame, and the lamp
	for side in [-1, 1]:
		box("wood", Vector3(-0.9 + 0.69 * side, 1.85, -4.93), Vector3(0.1, 1.48, 0.14))
		box("wood", Vector3(-0.9, 1.85 + 0.69 * side, -4.93), Vector3(1.48, 0.1, 0.14))
	var glow := StandardMaterial3D.new()
	glow.shading_mode = BaseMaterial3D.SHADING_MODE_UNSHADED
	glow.albedo_color = Color(1, 0.93, 0.76)
	var bulb := MeshInstance3D.new()
	var ball := SphereMesh.new()
	ball.radius = 0.1
	ball.height = 0.2
	ball.material = glow
	bulb.mesh = ball
	bulb.cast_shadow = GeometryInstance3D.SHADOW_CASTING_SETTING_OFF
	$Lamp.add_child(bulb)
	var cord := box("wood", Vector3(0, 0.38, 0), Vector3(0.025, 0.6, 0.025))
	cord.reparent($Lamp, false)
	cord.cast_shadow = GeometryInstance3D.SHADOW_CASTING_SETTING_OFF


func column(at: Vector3) -> void:
	var mesh := CylinderMesh.new()
	mesh.top_radius = 0.24
	mesh.bottom_radius = 0.28
	mesh.height = 2.8
	mesh.radial_segments = 20
	mesh.material = materials["column"]
	var instance := MeshInstance3D.new()
	instance.mesh = mesh
	instance.position = at + Vector3.UP * 1.6
	add_child(instance)
	for y in [0.1, 3.05]:
		box("column", at + Vector3.UP * y, Vector3(0.75, 0.2, 0.75))
