/* The kernel, compiled: what `_kernel.py` says in plain Python, which is what to read first. Python prefers this module
 * to that file wherever it could be built. It keeps to CPython's limited API of 3.11, so that one binary serves every
 * later version; free-threaded builds have no limited API and compile the same source without it (see setup.py).
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "_kernel_batch.h"
#include "_kernel_fill.h"
#include "_kernel_change.h"
#include "_kernel_finders.h"
#include "_kernel_ring.h"
#include "_kernel_table.h"

/* -- Lookup: the base class of every placement */

typedef struct {
    PyObject_HEAD
    Table *table;
} Lookup;

static int
lookup_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((Lookup *)op)->table);
    return 0;
}

static int
lookup_clear(PyObject *op)
{
    Py_CLEAR(((Lookup *)op)->table);
    return 0;
}

static void
lookup_dealloc(PyObject *op)
{
    PyObject_GC_UnTrack(op);
    lookup_clear(op);
    free_object(op);
}

/* The state that is now, for the caller to keep: a writer may publish the next one at any moment. */
static inline Table *
table_now(PyObject *self)
{
    Table *table;
    LOCK(self);
    table = ((Lookup *)self)->table;
    Py_XINCREF((PyObject *)table);
    UNLOCK();
    if (table == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_table");
    }
    return table;
}

static PyObject *
lookup_get_table(PyObject *self, void *closure)
{
    return (PyObject *)table_now(self);
}

static int
lookup_set_table(PyObject *self, PyObject *value, void *closure)
{
    /* Only our own type ends its objects by this function, and nobody can derive from it. */
    if (value == NULL || PyType_GetSlot(Py_TYPE(value), Py_tp_dealloc) != (void *)table_dealloc) {
        PyErr_SetString(PyExc_TypeError, "_table is a Table");
        return -1;
    }
    Table *old;
    Py_INCREF(value);
    LOCK(self);
    old = ((Lookup *)self)->table;
    ((Lookup *)self)->table = (Table *)value;
    UNLOCK();
    Py_XDECREF((PyObject *)old);
    return 0;
}

static PyObject *
refuse_empty(PyObject *self)
{
    PyObject *error = PyObject_CallMethod(self, "_refuse_empty", NULL);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

/* get_node's arguments where they are not just the key. */
static int
get_node_arguments(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, PyObject **key, PyObject **exclude)
{
    if (nargs > 1) {
        PyErr_SetString(PyExc_TypeError, "get_node takes one key; what follows it has a name: exclude=");
        return -1;
    }
    if (nargs == 1) {
        *key = args[0];
    }
    for (Py_ssize_t i = 0, count = kwnames ? PyTuple_Size(kwnames) : 0; i < count; i++) {
        PyObject *word = PyTuple_GetItem(kwnames, i);
        if (PyUnicode_CompareWithASCIIString(word, "exclude") == 0) {
            *exclude = args[nargs + i];
        }
        else if (*key == NULL && PyUnicode_CompareWithASCIIString(word, "key") == 0) {
            *key = args[nargs + i];
        }
        else {
            PyErr_Format(PyExc_TypeError, "get_node got an unexpected argument %R", word);
            return -1;
        }
    }
    if (*key == NULL) {
        PyErr_SetString(PyExc_TypeError, "get_node takes a key");
        return -1;
    }
    return 0;
}

static PyObject *
lookup_get_node(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *key = NULL, *exclude = NULL, *name = NULL;
    if (nargs == 1 && kwnames == NULL) {
        key = args[0];
    }
    else if (get_node_arguments(args, nargs, kwnames, &key, &exclude) < 0) {
        return NULL;
    }
    int excludes = exclude ? PyObject_IsTrue(exclude) : 0;
    if (excludes) {
        return excludes < 0 ? NULL : PyObject_CallMethod(self, "_first_but", "OO", key, exclude);
    }
    Table *table = table_now(self);
    if (table == NULL) {
        return NULL;
    }
    uint64_t place;
    uint32_t slot;
    if (table->finder == Py_None) {
        refuse_empty(self);
    }
    else if (place_of(table, key, &place) == 0 && slot_of(table, place, &slot) == 0) {
        name = name_at(table, slot);
    }
    Py_DECREF(table);
    return name;
}

/* The slots of all keys, and the table that they were looked up in. */
static Table *
lookup_slots(PyObject *self, PyObject *keys, Slots *slots)
{
    Table *table = table_now(self);
    if (table == NULL) {
        return NULL;
    }
    if (PyUnicode_Check(keys) || PyBytes_Check(keys)) {
        PyErr_Format(table->module->misuse, "locate takes many keys; for the one key %R use get_node", keys);
    }
    else if (table->finder == Py_None) {
        refuse_empty(self);
    }
    else if (slots_of(table, keys, slots) == 0) {
        return table;
    }
    PyMem_Free(slots->slot);
    Py_DECREF(table);
    return NULL;
}

static PyObject *
lookup_locate(PyObject *self, PyObject *keys)
{
    Slots slots = {0};
    Table *table = lookup_slots(self, keys, &slots);
    if (table == NULL) {
        return NULL;
    }
    PyObject *names = PyList_New(slots.count);
    for (Py_ssize_t i = 0; names != NULL && i < slots.count; i++) {
        PyObject *name = name_at(table, slots.slot[i]);
        if (name == NULL || PyList_SetItem(names, i, name) < 0) {
            Py_CLEAR(names);
        }
    }
    PyMem_Free(slots.slot);
    Py_DECREF(table);
    return names;
}

static PyObject *
lookup_locate_slots(PyObject *self, PyObject *keys)
{
    Slots slots = {0};
    Table *table = lookup_slots(self, keys, &slots);
    if (table == NULL) {
        return NULL;
    }
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)slots.slot, slots.count * (Py_ssize_t)sizeof *slots.slot);
    PyObject *view = bytes ? view_of(bytes, "I", slots.count) : NULL;
    Py_XDECREF(bytes);
    PyMem_Free(slots.slot);
    Py_DECREF(table);
    return view;
}

static PyMethodDef lookup_methods[] = {
    {"get_node", (PyCFunction)(void (*)(void))lookup_get_node, METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("get_node($self, /, key, *, exclude=())\n--\n\n"
               "The node that ``key`` lives on: the first of `iterate_nodes` that is not in ``exclude``.")},
    {"locate", lookup_locate, METH_O,
     PyDoc_STR("locate($self, keys, /)\n--\n\n"
               "The node of each key, all in one and the same state. A buffer of integers is a sequence of them.")},
    {"locate_slots", lookup_locate_slots, METH_O,
     PyDoc_STR("locate_slots($self, keys, /)\n--\n\n"
               "The same as a buffer of unsigned 32-bit numbers, each a place in `slots`; numpy wraps it without "
               "copying.")},
    {NULL},
};

/* own_methods(cls): give a subclass of Lookup descriptors of its own for the methods that it has from there. CPython
 * calls a method in C without detours only where the object's class is the very one that the descriptor names: by an
 * inherited one a lookup would take half as long again. */
static PyObject *
kernel_own_methods(PyObject *self, PyObject *cls)
{
    if (!PyType_Check(cls)) {
        return PyErr_Format(PyExc_TypeError, "own_methods takes a class, not %R", cls);
    }
    for (PyMethodDef *method = lookup_methods; method->ml_name != NULL; method++) {
        PyObject *inherited = PyObject_GetAttrString(cls, method->ml_name);
        int is_ours = inherited != NULL && Py_TYPE(inherited) == &PyMethodDescr_Type; /* and not one in Python */
        Py_XDECREF(inherited);
        PyObject *own = is_ours ? PyDescr_NewMethod((PyTypeObject *)cls, method) : NULL;
        int failed = own != NULL && PyObject_SetAttrString(cls, method->ml_name, own) < 0;
        Py_XDECREF(own);
        if (failed || PyErr_Occurred()) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

/* -- functions of the module */

static PyObject *
kernel_hash_key(PyObject *self, PyObject *key)
{
    uint64_t place;
    int usual = hash_usual(key, &place);
    if (usual < 0 || (usual == 0 && hash_unusual(PyModule_GetState(self), key, &place) < 0)) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(place);
}

static PyObject *
kernel_mix(PyObject *self, PyObject *value)
{
    uint64_t bits = PyLong_AsUnsignedLongLongMask(value);
    return bits == UINT64_MAX && PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(mixed(bits));
}

/* xxh64(data, seed=0) */
static PyObject *
kernel_xxh64(PyObject *self, PyObject *args)
{
    Py_buffer data;
    PyObject *seed = NULL;
    if (!PyArg_ParseTuple(args, "y*|O!:xxh64", &data, &PyLong_Type, &seed)) {
        return NULL;
    }
    uint64_t hash = xxh64(data.buf, (size_t)data.len, seed ? PyLong_AsUnsignedLongLongMask(seed) : 0);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLongLong(hash);
}

/* points_of(raw, start, stop): the hashes of raw and each number in four little-endian bytes */
static PyObject *
kernel_points_of(PyObject *self, PyObject *args)
{
    Py_buffer raw;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "y*nn:points_of", &raw, &start, &stop)) {
        return NULL;
    }
    PyObject *bytes = NULL, *array = NULL;
    Py_ssize_t count = stop > start ? stop - start : 0;
    unsigned char *text = PyMem_Malloc((size_t)raw.len + 4);
    if (text == NULL) {
        PyErr_NoMemory();
    }
    else if (start < 0 || (uint64_t)stop > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "the numbers of points are from 0 to 2**32 - 1, not %zd to %zd", start, stop);
    }
    else {
        bytes = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(uint64_t));
    }
    if (bytes != NULL) {
        uint64_t *points = (uint64_t *)PyBytes_AsString(bytes);
        memcpy(text, raw.buf, (size_t)raw.len);
        for (Py_ssize_t i = 0; i < count; i++) {
            uint32_t number = (uint32_t)(start + i);
            for (int byte = 0; byte < 4; byte++) {
                text[raw.len + byte] = (unsigned char)(number >> 8 * byte);
            }
            points[i] = xxh64(text, (size_t)raw.len + 4, 0);
        }
        array = PyObject_CallFunction(((Module *)PyModule_GetState(self))->array, "sO", "Q", bytes);
        Py_DECREF(bytes);
    }
    PyMem_Free(text);
    PyBuffer_Release(&raw);
    return array;
}

/* -- types */

static PyMethodDef ring_methods[] = {
    {"find", finder_find_method, METH_O, PyDoc_STR("find($self, place, /)\n--\n\n")},
    {"walk", ring_walk, METH_O, PyDoc_STR("walk($self, place, /)\n--\n\n")},
    {"changed", ring_changed, METH_VARARGS, PyDoc_STR("changed($self, slot, added, removed, names, /)\n--\n\n")},
    {NULL},
};

static PyGetSetDef ring_getset[] = {
    {"points", ring_points, NULL, PyDoc_STR("The sorted points.")},
    {"owners", ring_owners, NULL, PyDoc_STR("The slot of each point, and of the first again.")},
    {NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Ring(points, owners, names)\n--\n\n")},
    {Py_tp_new, ring_new},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_getset},
    {0},
};

static PyType_Spec ring_spec = {
    "holdfast.placement._kernel.Ring", sizeof(Ring), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, ring_slots,
};

static PyType_Slot walk_slots[] = {
    {Py_tp_dealloc, walk_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, walk_next},
    {0},
};

static PyType_Spec walk_spec = {
    "holdfast.placement._kernel.Walk", sizeof(Walk), 1,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, walk_slots,
};

static PyType_Slot finder_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("An algorithm's state, immutable: from the hash of a key to a slot.")},
    {0},
};

static PyType_Spec finder_spec = {
    "holdfast.placement._kernel.Finder", sizeof(Finder), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE, finder_slots,
};

static PyMethodDef native_methods[] = {
    {"find", finder_find_method, METH_O, PyDoc_STR("find($self, place, /)\n--\n\n")},
    {NULL},
};

static PyType_Slot native_slots[] = {
    {Py_tp_dealloc, native_dealloc},
    {Py_tp_methods, native_methods},
    {0},
};

static PyType_Spec native_spec = {
    "holdfast.placement._kernel.Native", sizeof(Native), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, native_slots,
};

static PyMemberDef table_members[] = {
    {"finder", T_OBJECT_EX, offsetof(Table, finder), READONLY},
    {"names", T_OBJECT_EX, offsetof(Table, names), READONLY},
    {"state", T_OBJECT_EX, offsetof(Table, state), READONLY},
    {NULL},
};

static PyMethodDef table_methods[] = {
    {"hash", table_hash, METH_O, PyDoc_STR("hash($self, key, /)\n--\n\nThe place of a key.")},
    {NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Table(finder, names, hasher, state)\n--\n\n")},
    {Py_tp_new, table_new},
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_traverse, table_traverse},
    {Py_tp_members, table_members},
    {Py_tp_methods, table_methods},
    {0},
};

static PyType_Spec table_spec = {
    "holdfast.placement._kernel.Table", sizeof(Table), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, table_slots,
};

static PyGetSetDef lookup_getset[] = {
    {"_table", lookup_get_table, lookup_set_table, PyDoc_STR("The state that is now.")},
    {NULL},
};

static PyType_Slot lookup_type_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("From keys to names of nodes.")},
    {Py_tp_dealloc, lookup_dealloc},
    {Py_tp_traverse, lookup_traverse},
    {Py_tp_clear, lookup_clear},
    {Py_tp_getset, lookup_getset},
    {Py_tp_methods, lookup_methods},
    {0},
};

static PyType_Spec lookup_spec = {
    "holdfast.placement._kernel.Lookup", sizeof(Lookup), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC, lookup_type_slots,
};

/* -- the module */

static PyObject *
attribute_of(const char *module, const char *name)
{
    PyObject *imported = PyImport_ImportModule(module);
    PyObject *value = imported ? PyObject_GetAttrString(imported, name) : NULL;
    Py_XDECREF(imported);
    return value;
}

static PyTypeObject *
add_type(PyObject *self, PyType_Spec *spec, PyTypeObject *base)
{
    PyObject *type = PyType_FromModuleAndSpec(self, spec, (PyObject *)base);
    if (type != NULL && PyModule_AddType(self, (PyTypeObject *)type) < 0) {
        Py_CLEAR(type);
    }
    return (PyTypeObject *)type;
}

static int
kernel_exec(PyObject *self)
{
    Module *module = PyModule_GetState(self);
    module->key_bytes = attribute_of("holdfast.placement.hashing", "key_bytes");
    module->misuse = module->key_bytes ? attribute_of("holdfast.errors", "Misuse") : NULL;
    module->array = module->misuse ? attribute_of("array", "array") : NULL;
    module->finder = module->array ? add_type(self, &finder_spec, NULL) : NULL;
    module->native = module->finder ? add_type(self, &native_spec, module->finder) : NULL;
    module->ring = module->native ? add_type(self, &ring_spec, module->finder) : NULL;
    module->walk = module->ring ? add_type(self, &walk_spec, NULL) : NULL;
    module->table = module->walk ? add_type(self, &table_spec, NULL) : NULL;
    PyTypeObject *lookup = module->table ? add_type(self, &lookup_spec, NULL) : NULL;
    if (lookup == NULL) {
        return -1;
    }
    Py_DECREF(lookup);
    return PyModule_AddStringConstant(self, "NAME", "c");
}

static int
kernel_traverse(PyObject *self, visitproc visit, void *arg)
{
    Module *module = PyModule_GetState(self);
    Py_VISIT(module->key_bytes);
    Py_VISIT(module->misuse);
    Py_VISIT(module->array);
    Py_VISIT(module->finder);
    Py_VISIT(module->native);
    Py_VISIT(module->ring);
    Py_VISIT(module->walk);
    Py_VISIT(module->table);
    return 0;
}

static int
kernel_clear(PyObject *self)
{
    Module *module = PyModule_GetState(self);
    Py_CLEAR(module->key_bytes);
    Py_CLEAR(module->misuse);
    Py_CLEAR(module->array);
    Py_CLEAR(module->finder);
    Py_CLEAR(module->native);
    Py_CLEAR(module->ring);
    Py_CLEAR(module->walk);
    Py_CLEAR(module->table);
    return 0;
}

static void
kernel_free(void *self)
{
    kernel_clear(self);
}

static PyMethodDef kernel_functions[] = {
    {"hash_key", kernel_hash_key, METH_O,
     PyDoc_STR("hash_key($module, key, /)\n--\n\nXXH64 with seed 0 of a key's bytes.")},
    {"fill", kernel_fill, METH_VARARGS, PyDoc_STR("fill($module, size, at, steps, slots, shares, /)\n--\n\n")},
    {"native", kernel_native, METH_VARARGS, PyDoc_STR("native($module, kind, /, *state)\n--\n\n")},
    {"own_methods", kernel_own_methods, METH_O, PyDoc_STR("own_methods($module, cls, /)\n--\n\n")},
    {"mix", kernel_mix, METH_O,
     PyDoc_STR("mix($module, value, /)\n--\n\nA bijection of 64-bit numbers (SplitMix64's).")},
    {"xxh64", kernel_xxh64, METH_VARARGS, PyDoc_STR("xxh64($module, data, seed=0, /)\n--\n\n")},
    {"points_of", kernel_points_of, METH_VARARGS, PyDoc_STR("points_of($module, raw, start, stop, /)\n--\n\n")},
    {NULL},
};

/* Two slots are filled in where Python knows them: 3.11 refuses what it does not know. */
static PyModuleDef_Slot kernel_slots[] = {
    {Py_mod_exec, kernel_exec},
    {0},
    {0},
    {0},
};

static PyModuleDef kernel_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "holdfast.placement._kernel",
    .m_doc = "The kernel, compiled: see _kernel.py.",
    .m_size = sizeof(Module),
    .m_methods = kernel_functions,
    .m_slots = kernel_slots,
    .m_traverse = kernel_traverse,
    .m_clear = kernel_clear,
    .m_free = kernel_free,
};

PyMODINIT_FUNC
PyInit__kernel(void)
{
    enum { MULTIPLE_INTERPRETERS = 3, GIL = 4 }; /* by number: the limited API of 3.11 has no names for them */
    if (Py_Version >= 0x030C0000) {
        kernel_slots[1] = (PyModuleDef_Slot){MULTIPLE_INTERPRETERS, (void *)2}; /* each with its own GIL */
    }
    if (Py_Version >= 0x030D0000) {
        kernel_slots[2] = (PyModuleDef_Slot){GIL, (void *)1}; /* none is needed */
    }
    return PyModuleDef_Init(&kernel_module);
}
