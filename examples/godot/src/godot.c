/* See godot.h. */

#include "godot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

godot_functions godot;

static GDExtensionClassLibraryPtr plugin;
static GDExtensionPtrDestructor end_string, end_string_name, end_bytes;

typedef struct string_name {
    void *opaque;
} string_name;

typedef struct string {
    void *opaque;
} string;

bool godot_begin(GDExtensionInterfaceGetProcAddress get_proc_address, GDExtensionClassLibraryPtr library) {
    plugin = library;
#define FIND(type, name)                                                              \
    godot.name = (GDExtensionInterface##type)(void (*)(void))get_proc_address(#name); \
    if (godot.name == NULL) {                                                         \
        fprintf(stderr, "diffusion: this Godot has no function %s\n", #name);         \
        return false;                                                                 \
    }
    GODOT_FUNCTIONS(FIND)
#undef FIND
    end_string = godot.variant_get_ptr_destructor(GDEXTENSION_VARIANT_TYPE_STRING);
    end_string_name = godot.variant_get_ptr_destructor(GDEXTENSION_VARIANT_TYPE_STRING_NAME);
    end_bytes = godot.variant_get_ptr_destructor(GDEXTENSION_VARIANT_TYPE_PACKED_BYTE_ARRAY);
    return true;
}

static string_name name_of(const char *latin1) {
    string_name name;
    godot.string_name_new_with_latin1_chars(&name, latin1, 0);
    return name;
}

/* ---- Values */

static variant variant_from(GDExtensionVariantType type, void *value) {
    variant made;
    godot.get_variant_from_type_constructor(type)(&made, value);
    return made;
}

static void variant_into(GDExtensionVariantType type, void *value, const variant *from) {
    godot.get_variant_to_type_constructor(type)(value, (GDExtensionVariantPtr)from);
}

variant variant_of_int(int64_t value) {
    return variant_from(GDEXTENSION_VARIANT_TYPE_INT, &value);
}

variant variant_of_bool(bool value) {
    GDExtensionBool byte = value;
    return variant_from(GDEXTENSION_VARIANT_TYPE_BOOL, &byte);
}

variant variant_of_string(const char *utf8) {
    string text;
    godot.string_new_with_utf8_chars(&text, utf8);
    variant made = variant_from(GDEXTENSION_VARIANT_TYPE_STRING, &text);
    end_string(&text);
    return made;
}

variant variant_of_object(GDExtensionObjectPtr object) {
    return variant_from(GDEXTENSION_VARIANT_TYPE_OBJECT, &object);
}

variant godot_singleton(const char *singleton_name) {
    string_name name = name_of(singleton_name);
    variant made = variant_of_object(godot.global_get_singleton(&name));
    end_string_name(&name);
    return made;
}

variant variant_of_callable(GDExtensionObjectPtr object, const char *method_name) {
    string_name name = name_of(method_name);
    variant parts[] = {variant_of_object(object), variant_from(GDEXTENSION_VARIANT_TYPE_STRING_NAME, &name)};
    variant made;
    GDExtensionCallError error;
    godot.variant_construct(GDEXTENSION_VARIANT_TYPE_CALLABLE, &made,
                            (GDExtensionConstVariantPtr[]){&parts[0], &parts[1]}, 2, &error);
    variant_end(&parts[0]);
    variant_end(&parts[1]);
    end_string_name(&name);
    return made;
}

GDExtensionObjectPtr variant_to_object(const variant *value) {
    GDExtensionObjectPtr object = NULL;
    if (godot.variant_get_type(value) == GDEXTENSION_VARIANT_TYPE_OBJECT) {
        variant_into(GDEXTENSION_VARIANT_TYPE_OBJECT, &object, value);
    }
    return object;
}

bool variant_to_bool(const variant *value) {
    GDExtensionBool byte = 0;
    variant_into(GDEXTENSION_VARIANT_TYPE_BOOL, &byte, value);
    return byte != 0;
}

void variant_end(variant *value) {
    godot.variant_destroy(value);
}

char *utf8_of_string(GDExtensionConstStringPtr text) {
    GDExtensionInt length = godot.string_to_utf8_chars(text, NULL, 0);
    char *utf8 = malloc((size_t)length + 1);
    godot.string_to_utf8_chars(text, utf8, length);
    utf8[length] = '\0';
    return utf8;
}

char *utf8_of_variant(const variant *value) {
    string text;
    variant_into(GDEXTENSION_VARIANT_TYPE_STRING, &text, value);
    char *utf8 = utf8_of_string(&text);
    end_string(&text);
    return utf8;
}

variant image_of_rgba8(const uint8_t *pixels, int64_t size) {
    enum { FORMAT_RGBA8 = 5 }; /* Image.FORMAT_RGBA8 */
    uint64_t bytes[2];         /* a PackedByteArray */
    variant resized, nothing;
    GDExtensionCallError error;
    godot.variant_construct(GDEXTENSION_VARIANT_TYPE_PACKED_BYTE_ARRAY, &resized, NULL, 0, &error);
    nothing = godot_call_with(&resized, "resize", (variant[]){variant_of_int(size * size * 4)}, 1);
    variant_end(&nothing);
    variant_into(GDEXTENSION_VARIANT_TYPE_PACKED_BYTE_ARRAY, bytes, &resized);
    variant_end(&resized);
    memcpy(godot.packed_byte_array_operator_index(bytes, 0), pixels, (size_t)(size * size * 4));

    string_name image_class = name_of("Image");
    variant image = variant_of_object(godot.classdb_construct_object(&image_class));
    end_string_name(&image_class);
    variant arguments[] = {variant_of_int(size), variant_of_int(size), variant_of_bool(false),
                           variant_of_int(FORMAT_RGBA8),
                           variant_from(GDEXTENSION_VARIANT_TYPE_PACKED_BYTE_ARRAY, bytes)};
    nothing = godot_call_with(&image, "set_data", arguments, COUNT(arguments));
    variant_end(&nothing);
    end_bytes(bytes);
    return image;
}

/* ---- Calls */

variant godot_call_with(const variant *receiver, const char *method_name, variant *arguments, int count) {
    GDExtensionConstVariantPtr pointers[8] = {NULL};
    variant answer;
    GDExtensionCallError error;
    string_name name = name_of(method_name);
    for (int i = 0; i < count; i++) {
        pointers[i] = &arguments[i];
    }
    godot.variant_call((GDExtensionVariantPtr)receiver, &name, pointers, count, &answer, &error);
    if (error.error != GDEXTENSION_CALL_OK) {
        char text[128];
        snprintf(text, sizeof text, "%s cannot be called: error %d", method_name, (int)error.error);
        godot_push_error(text, "godot_call");
    }
    for (int i = 0; i < count; i++) {
        variant_end(&arguments[i]);
    }
    end_string_name(&name);
    return answer;
}

void godot_do_with(GDExtensionObjectPtr object, const char *method_name, variant *arguments, int count) {
    variant receiver = variant_of_object(object);
    variant answer = godot_call_with(&receiver, method_name, arguments, count);
    variant_end(&answer);
    variant_end(&receiver);
}

void godot_push_error(const char *message, const char *function) {
    godot.print_error(message, function, "addons/diffusion", 0, 0);
}

/* ---- Classes */

/* PropertyUsageFlags: PROPERTY_USAGE_DEFAULT is stored and shown in the inspector. */
enum { USAGE_NONE = 0, USAGE_DEFAULT = 6 };

typedef struct described {
    string_name name, class_name;
    string hint_string;
    GDExtensionPropertyInfo info;
} described;

static void describe(described *d, GDExtensionVariantType type, const char *name, const char *class_name,
                     uint32_t hint, const char *hint_string, uint32_t usage) {
    d->name = name_of(name);
    d->class_name = name_of(class_name != NULL ? class_name : "");
    godot.string_new_with_utf8_chars(&d->hint_string, hint_string != NULL ? hint_string : "");
    d->info = (GDExtensionPropertyInfo){type, &d->name, &d->class_name, hint, &d->hint_string, usage};
}

static void end_description(described *d) {
    end_string_name(&d->name);
    end_string_name(&d->class_name);
    end_string(&d->hint_string);
}

static void describe_arguments(described *d, GDExtensionPropertyInfo *infos, const argument *arguments,
                               int count) {
    for (int i = 0; i < count; i++) {
        describe(&d[i], arguments[i].type, arguments[i].name, arguments[i].class_name, 0, NULL,
                 USAGE_DEFAULT);
        infos[i] = d[i].info;
    }
}

/* ---- Methods, and the fields behind properties */

static void read_property(const property *p, const void *self, GDExtensionTypePtr answer) {
    const char *field = (const char *)self + p->offset;
    if (p->type == GDEXTENSION_VARIANT_TYPE_STRING) {
        end_string(answer);
        godot.string_new_with_utf8_chars(answer, *(char *const *)field);
    } else if (p->type == GDEXTENSION_VARIANT_TYPE_BOOL) {
        *(GDExtensionBool *)answer = *(const bool *)field;
    } else {
        *(int64_t *)answer = *(const int64_t *)field;
    }
}

static void set_property(const property *p, void *self, GDExtensionConstTypePtr value) {
    char *field = (char *)self + p->offset;
    if (p->type == GDEXTENSION_VARIANT_TYPE_STRING) {
        free(*(char **)field);
        *(char **)field = utf8_of_string(value);
    } else if (p->type == GDEXTENSION_VARIANT_TYPE_BOOL) {
        *(bool *)field = *(const GDExtensionBool *)value != 0;
    } else {
        *(int64_t *)field = *(const int64_t *)value;
    }
    if (p->changed != NULL) p->changed(self);
}

static void invoke(const method *m, void *self, const GDExtensionConstTypePtr *arguments,
                   GDExtensionTypePtr answer) {
    if (m->property == NULL) {
        m->function(self, arguments, answer);
    } else if (m->argument_count == 0) {
        read_property(m->property, self, answer);
    } else {
        set_property(m->property, self, arguments[0]);
    }
}

static void call_typed(void *userdata, GDExtensionClassInstancePtr self,
                       const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer) {
    invoke(userdata, self, arguments, answer);
}

/* The same from Variants, which scripts without types pass. */
static void call_untyped(void *userdata, GDExtensionClassInstancePtr self,
                         const GDExtensionConstVariantPtr *given, GDExtensionInt count,
                         GDExtensionVariantPtr answer, GDExtensionCallError *error) {
    const method *m = userdata;
    int64_t values[MAX_ARGUMENTS]; /* of the types used, none is larger */
    GDExtensionConstTypePtr pointers[MAX_ARGUMENTS] = {NULL};
    int64_t result = 0;
    int least = m->argument_count - m->default_count;
    if (count < least || count > m->argument_count) {
        error->error = count < least ? GDEXTENSION_CALL_ERROR_TOO_FEW_ARGUMENTS
                                     : GDEXTENSION_CALL_ERROR_TOO_MANY_ARGUMENTS;
        error->expected = count < least ? least : m->argument_count;
        return;
    }
    for (int i = 0; i < count; i++) {
        if (!godot.variant_can_convert_strict(godot.variant_get_type(given[i]), m->arguments[i].type)) {
            *error = (GDExtensionCallError){GDEXTENSION_CALL_ERROR_INVALID_ARGUMENT, i,
                                            (int32_t)m->arguments[i].type};
            return;
        }
    }
    for (int i = 0; i < m->argument_count; i++) {
        pointers[i] = &values[i];
        if (i < count) {
            variant_into(m->arguments[i].type, &values[i], given[i]);
        } else {
            values[i] = m->defaults[i - least];
        }
    }
    invoke(m, self, pointers, &result);
    for (int i = 0; i < count; i++) {
        if (m->arguments[i].type == GDEXTENSION_VARIANT_TYPE_STRING) end_string(&values[i]);
    }
    if (m->answer != GDEXTENSION_VARIANT_TYPE_NIL) {
        godot.get_variant_from_type_constructor(m->answer)(answer, &result);
        if (m->answer == GDEXTENSION_VARIANT_TYPE_STRING) end_string(&result);
    }
    error->error = GDEXTENSION_CALL_OK;
}

static void register_method(const string_name *class_name, const method *m) {
    described answer, arguments[MAX_ARGUMENTS];
    GDExtensionPropertyInfo infos[MAX_ARGUMENTS];
    GDExtensionClassMethodArgumentMetadata metadata[MAX_ARGUMENTS] = {
        GDEXTENSION_METHOD_ARGUMENT_METADATA_NONE};
    variant defaults[MAX_ARGUMENTS];
    GDExtensionVariantPtr default_pointers[MAX_ARGUMENTS];
    string_name name = name_of(m->name);
    describe(&answer, m->answer, "", NULL, 0, NULL, USAGE_DEFAULT);
    describe_arguments(arguments, infos, m->arguments, m->argument_count);
    for (int i = 0; i < m->default_count; i++) {
        defaults[i] = variant_of_int(m->defaults[i]);
        default_pointers[i] = &defaults[i];
    }
    GDExtensionClassMethodInfo info = {
        .name = &name,
        .method_userdata = (void *)m,
        .call_func = call_untyped,
        .ptrcall_func = call_typed,
        .method_flags = GDEXTENSION_METHOD_FLAGS_DEFAULT,
        .has_return_value = m->answer != GDEXTENSION_VARIANT_TYPE_NIL,
        .return_value_info = &answer.info,
        .argument_count = (uint32_t)m->argument_count,
        .arguments_info = infos,
        .arguments_metadata = metadata,
        .default_argument_count = (uint32_t)m->default_count,
        .default_arguments = default_pointers,
    };
    godot.classdb_register_extension_class_method(plugin, class_name, &info);
    for (int i = 0; i < m->default_count; i++) {
        variant_end(&defaults[i]);
    }
    for (int i = 0; i < m->argument_count; i++) {
        end_description(&arguments[i]);
    }
    end_description(&answer);
    end_string_name(&name);
}

/* Methods that were made out of properties live as long as the plugin. */
typedef struct accessors {
    struct accessors *next;
    char getter_name[64], setter_name[64];
    method getter, setter;
} accessors;

static accessors *all_accessors;

static void register_property(const string_name *class_name, const property *p) {
    accessors *a = calloc(1, sizeof *a);
    a->next = all_accessors;
    all_accessors = a;
    snprintf(a->getter_name, sizeof a->getter_name, "get_%s", p->name);
    snprintf(a->setter_name, sizeof a->setter_name, "set_%s", p->name);
    a->getter = (method){.name = a->getter_name, .property = p, .answer = p->type};
    a->setter = (method){
        .name = a->setter_name, .property = p, .argument_count = 1, .arguments = {{p->type, p->name, NULL}}};
    register_method(class_name, &a->getter);
    register_method(class_name, &a->setter);

    described d;
    string_name getter = name_of(a->getter_name), setter = name_of(a->setter_name);
    describe(&d, p->type, p->name, NULL, p->hint, p->hint_string, USAGE_DEFAULT);
    godot.classdb_register_extension_class_property(plugin, class_name, &d.info, &setter, &getter);
    end_description(&d);
    end_string_name(&getter);
    end_string_name(&setter);
}

static void register_signal(const string_name *class_name, const signal_type *s) {
    described arguments[MAX_ARGUMENTS];
    GDExtensionPropertyInfo infos[MAX_ARGUMENTS];
    string_name name = name_of(s->name);
    describe_arguments(arguments, infos, s->arguments, s->argument_count);
    godot.classdb_register_extension_class_signal(plugin, class_name, &name, infos, s->argument_count);
    for (int i = 0; i < s->argument_count; i++) {
        end_description(&arguments[i]);
    }
    end_string_name(&name);
}

static GDExtensionObjectPtr create_instance(void *userdata) {
    const class_type *type = userdata;
    string_name name = name_of(type->name), parent = name_of(type->parent);
    GDExtensionObjectPtr object = godot.classdb_construct_object(&parent);
    godot.object_set_instance(object, &name, type->create(object));
    end_string_name(&name);
    end_string_name(&parent);
    return object;
}

static void free_instance(void *userdata, GDExtensionClassInstancePtr self) {
    ((const class_type *)userdata)->destroy(self);
}

void godot_register(const class_type *type) {
    string_name name = name_of(type->name), parent = name_of(type->parent);
    GDExtensionClassCreationInfo2 info = {
        .is_exposed = 1,
        .notification_func = type->notification,
        .create_instance_func = create_instance,
        .free_instance_func = free_instance,
        .class_userdata = (void *)type,
    };
    godot.classdb_register_extension_class2(plugin, &name, &parent, &info);
    for (int i = 0; i < type->method_count; i++) {
        register_method(&name, &type->methods[i]);
    }
    for (int i = 0; i < type->property_count; i++) {
        register_property(&name, &type->properties[i]);
    }
    for (int i = 0; i < type->signal_count; i++) {
        register_signal(&name, &type->signals[i]);
    }
    end_string_name(&name);
    end_string_name(&parent);
}

void godot_end(void) {
    while (all_accessors != NULL) {
        accessors *next = all_accessors->next;
        free(all_accessors);
        all_accessors = next;
    }
}

void godot_unregister(const class_type *type) {
    string_name name = name_of(type->name);
    godot.classdb_unregister_extension_class(plugin, &name);
    end_string_name(&name);
}
