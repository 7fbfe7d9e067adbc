/* The plugin's classes. SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef DIFFUSION_GODOT_PLUGIN_H
#define DIFFUSION_GODOT_PLUGIN_H

#include "godot.h"

extern const class_type generator_class, texture_class;

#endif
