/* The plugin's entry point, which Godot finds through diffusion.gdextension. SPDX-License-Identifier: MIT OR
 * Apache-2.0 */

#include "plugin.h"

#include "model.h"

static void initialize(void *userdata, GDExtensionInitializationLevel level) {
    (void)userdata;
    if (level != GDEXTENSION_INITIALIZATION_SCENE) return;
    godot_register(&generator_class);
    godot_register(&texture_class);
}

static void deinitialize(void *userdata, GDExtensionInitializationLevel level) {
    (void)userdata;
    if (level != GDEXTENSION_INITIALIZATION_SCENE) return;
    godot_unregister(&texture_class);
    godot_unregister(&generator_class);
    godot_end();
    models_join();
}

__attribute__((visibility("default"))) GDExtensionBool
diffusion_godot_init(GDExtensionInterfaceGetProcAddress get_proc_address, GDExtensionClassLibraryPtr library,
                     GDExtensionInitialization *initialization) {
    if (!godot_begin(get_proc_address, library)) return 0;
    initialization->minimum_initialization_level = GDEXTENSION_INITIALIZATION_SCENE;
    initialization->initialize = initialize;
    initialization->deinitialize = deinitialize;
    return 1;
}
