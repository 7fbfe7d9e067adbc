/*
 * The little of GDExtension's C interface that this plugin needs, under short names: values (Variant), calls
 * by name, and classes described by tables. gdextension_interface.h is written by Godot itself when the
 * plugin is built.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef DIFFUSION_GODOT_GODOT_H
#define DIFFUSION_GODOT_GODOT_H

#include <gdextension_interface.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Godot's Variant: 24 bytes, 40 where Godot was built with double precision. */
typedef struct variant {
    uint64_t opaque[5];
} variant;

/* Functions of Godot that are called as they are. */
#define GODOT_FUNCTIONS(X)                                                              \
    X(ClassdbConstructObject, classdb_construct_object)                                 \
    X(ClassdbRegisterExtensionClass2, classdb_register_extension_class2)                \
    X(ClassdbRegisterExtensionClassMethod, classdb_register_extension_class_method)     \
    X(ClassdbRegisterExtensionClassProperty, classdb_register_extension_class_property) \
    X(ClassdbRegisterExtensionClassSignal, classdb_register_extension_class_signal)     \
    X(ClassdbUnregisterExtensionClass, classdb_unregister_extension_class)              \
    X(GetVariantFromTypeConstructor, get_variant_from_type_constructor)                 \
    X(GetVariantToTypeConstructor, get_variant_to_type_constructor)                     \
    X(GlobalGetSingleton, global_get_singleton)                                         \
    X(ObjectSetInstance, object_set_instance)                                           \
    X(PackedByteArrayOperatorIndex, packed_byte_array_operator_index)                   \
    X(PrintError, print_error)                                                          \
    X(StringNameNewWithLatin1Chars, string_name_new_with_latin1_chars)                  \
    X(StringNewWithUtf8Chars, string_new_with_utf8_chars)                               \
    X(StringToUtf8Chars, string_to_utf8_chars)                                          \
    X(VariantCall, variant_call)                                                        \
    X(VariantCanConvertStrict, variant_can_convert_strict)                              \
    X(VariantConstruct, variant_construct)                                              \
    X(VariantDestroy, variant_destroy)                                                  \
    X(VariantGetPtrDestructor, variant_get_ptr_destructor)                              \
    X(VariantGetType, variant_get_type)

typedef struct godot_functions {
#define FIELD(type, name) GDExtensionInterface##type name;
    GODOT_FUNCTIONS(FIELD)
#undef FIELD
} godot_functions;

extern godot_functions godot;

/* Finds Godot's functions. False: this Godot lacks one of them. */
bool godot_begin(GDExtensionInterfaceGetProcAddress get_proc_address, GDExtensionClassLibraryPtr plugin);

/* ---- Values. A variant that one of these made must be given to variant_end, or to godot_call_with as an
 * argument. */

variant variant_of_int(int64_t value);
variant variant_of_bool(bool value);
variant variant_of_string(const char *utf8);
variant variant_of_object(GDExtensionObjectPtr object);
variant godot_singleton(const char *name);
variant variant_of_callable(GDExtensionObjectPtr object, const char *method);
GDExtensionObjectPtr variant_to_object(const variant *value);
bool variant_to_bool(const variant *value);
void variant_end(variant *value);

/* A String as UTF-8, to be freed. */
char *utf8_of_string(GDExtensionConstStringPtr string);
char *utf8_of_variant(const variant *value);

/* A new Image of RGBA8 pixels, size x size, rows from the top. */
variant image_of_rgba8(const uint8_t *pixels, int64_t size);

/* ---- Calls by name. The arguments are ended by the call, the receiver is not. */

variant godot_call_with(const variant *receiver, const char *method, variant *arguments, int count);
void godot_do_with(GDExtensionObjectPtr object, const char *method, variant *arguments, int count);
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define godot_do(object, method, ...) \
    godot_do_with(object, method, (variant[]){__VA_ARGS__}, COUNT(((variant[]){__VA_ARGS__})))

/* push_error: in the editor's debugger and on the terminal. */
void godot_push_error(const char *message, const char *function);

/* ---- Classes */

typedef struct argument {
    GDExtensionVariantType type;
    const char *name;
    const char *class_name; /* of an OBJECT, else NULL */
} argument;

enum { MAX_ARGUMENTS = 3 };

/* A method takes its arguments and gives its answer as Godot's own types: int64_t, GDExtensionBool, String.
 */
typedef void (*method_fn)(void *self, const GDExtensionConstTypePtr *arguments, GDExtensionTypePtr answer);

struct property;

typedef struct method {
    const char *name;
    method_fn function;
    GDExtensionVariantType answer; /* NIL: none */
    int argument_count;
    argument arguments[MAX_ARGUMENTS];
    int default_count; /* the last so many arguments may be left out; all are of type INT */
    int64_t defaults[MAX_ARGUMENTS];
    const struct property *property; /* the method reads or sets this, and has no function */
} method;

/* A property is a field of the object's struct: char * (never NULL, owned by the object) for a STRING,
 * int64_t for an INT, bool for a BOOL. It has the methods get_NAME and set_NAME. */
typedef struct property {
    const char *name;
    GDExtensionVariantType type;
    size_t offset;
    void (*changed)(void *self); /* or NULL: called after each set */
    uint32_t hint;               /* PropertyHint of Godot */
    const char *hint_string;
} property;

enum { HINT_NONE = 0, HINT_RANGE = 1, HINT_ENUM = 2, HINT_DIR = 14 }; /* PropertyHint */

typedef struct signal_type {
    const char *name;
    int argument_count;
    argument arguments[MAX_ARGUMENTS];
} signal_type;

typedef struct class_type {
    const char *name, *parent;
    void *(*create)(GDExtensionObjectPtr object);
    void (*destroy)(void *self);
    GDExtensionClassNotification2 notification; /* or NULL */
    const method *methods;
    int method_count;
    const property *properties;
    int property_count;
    const signal_type *signals;
    int signal_count;
} class_type;

/* The tables of a class_type, where they are called methods, properties and signals. */
#define CLASS_TABLES                                                              \
    .methods = methods, .method_count = COUNT(methods), .properties = properties, \
    .property_count = COUNT(properties), .signals = signals, .signal_count = COUNT(signals)

void godot_register(const class_type *type);
void godot_unregister(const class_type *type);

/* After the last class was unregistered. */
void godot_end(void);

#endif
