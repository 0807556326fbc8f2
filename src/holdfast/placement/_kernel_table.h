/* A table is one state of a placement: the hash of its keys, its finder, and whose names stand in the slots. */

#ifndef HOLDFAST_KERNEL_TABLE_H
#define HOLDFAST_KERNEL_TABLE_H

#include "_kernel_base.h"
#include "_kernel_hash.h"

/* -- from a key to its place */

/* Keys of the usual types: 1 with its place, 0 for a key of another type, -1 with an error. */
static inline int
hash_usual(PyObject *key, uint64_t *place)
{
    if (PyUnicode_CheckExact(key)) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(key, &size);
        if (text != NULL) {
            *place = xxh64(text, (size_t)size, 0);
            return 1;
        }
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
            return -1;
        }
        PyErr_Clear(); /* key_bytes says it better */
        return 0;
    }
    if (PyBytes_CheckExact(key)) {
        *place = xxh64(PyBytes_AsString(key), (size_t)PyBytes_Size(key), 0);
        return 1;
    }
    if (PyLong_CheckExact(key)) {
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(key, &overflow);
        if (!overflow) {
            *place = hash_integer((Integer){(uint64_t)value, value < 0});
            return 1;
        }
    }
    return 0;
}

static PyObject *
bytes_of(const Module *module, PyObject *key)
{
    PyObject *bytes = PyObject_CallFunctionObjArgs(module->key_bytes, key, NULL);
    if (bytes != NULL && !PyBytes_Check(bytes)) {
        PyErr_SetString(PyExc_TypeError, "key_bytes gave no bytes");
        Py_CLEAR(bytes);
    }
    return bytes;
}

static int
hash_unusual(const Module *module, PyObject *key, uint64_t *place)
{
    PyObject *bytes = bytes_of(module, key);
    if (bytes == NULL) {
        return -1;
    }
    *place = xxh64(PyBytes_AsString(bytes), (size_t)PyBytes_Size(bytes), 0);
    Py_DECREF(bytes);
    return 0;
}

/* -- Table: one state of a placement, never changed */

typedef struct {
    PyObject_HEAD
    PyObject *finder, *names, *hasher, *state; /* None for what is not there */
    const Finder *native;                      /* the finder in C, where there is one */
    PyObject *find;                            /* else the finder's method */
    PyObject *kept;                            /* the finder in C that one in Python made */
    PyObject **name;                           /* the items of names */
    uint32_t size;
    const Module *module; /* alive as long as our type is */
} Table;

static int
table_traverse(PyObject *op, visitproc visit, void *arg)
{
    Table *table = (Table *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(table->finder);
    Py_VISIT(table->names);
    Py_VISIT(table->hasher);
    Py_VISIT(table->state);
    Py_VISIT(table->find);
    Py_VISIT(table->kept);
    return 0;
}

static void
table_dealloc(PyObject *op)
{
    Table *table = (Table *)op;
    PyObject_GC_UnTrack(op);
    PyMem_Free(table->name);
    Py_XDECREF(table->finder);
    Py_XDECREF(table->names);
    Py_XDECREF(table->hasher);
    Py_XDECREF(table->state);
    Py_XDECREF(table->find);
    Py_XDECREF(table->kept);
    free_object(op);
}

static int
is_native(const Module *module, PyObject *finder)
{
    return PyObject_TypeCheck(finder, module->finder) && ((Finder *)finder)->find != NULL;
}

/* Table(finder, names, hasher, state) */
static PyObject *
table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *words[] = {"finder", "names", "hasher", "state", NULL};
    PyObject *finder, *names, *hasher, *state;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO!OO:Table", words, &finder, &PyTuple_Type, &names, &hasher, &state)) {
        return NULL;
    }
    const Module *module = PyType_GetModuleState(type);
    Table *table = module ? (Table *)new_object(type, 0) : NULL;
    if (table == NULL) {
        return NULL;
    }
    Py_ssize_t size = PyTuple_Size(names);
    table->module = module;
    table->finder = Py_NewRef(finder);
    table->names = Py_NewRef(names);
    table->hasher = Py_NewRef(hasher);
    table->state = Py_NewRef(state);
    table->name = PyMem_Malloc((size_t)size * sizeof *table->name + 1);
    if (table->name == NULL || (uint64_t)size >= UINT32_MAX) {
        Py_DECREF(table);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t slot = 0; slot < size; slot++) {
        PyObject *name = PyTuple_GetItem(names, slot);
        table->name[slot] = name == Py_None ? NULL : name;
    }
    table->size = (uint32_t)size;
    if (is_native(module, finder)) {
        table->native = (const Finder *)finder;
    }
    else if (finder != Py_None) {
        int has_native = PyObject_HasAttrString(finder, "native");
        table->find = PyObject_GetAttrString(finder, "find");
        table->kept = table->find && has_native ? PyObject_CallMethod(finder, "native", NULL) : NULL;
        if (table->find == NULL || (has_native && table->kept == NULL)) {
            Py_DECREF(table);
            return NULL;
        }
        if (has_native && is_native(module, table->kept)) {
            table->native = (const Finder *)table->kept;
        }
    }
    return (PyObject *)table;
}

/* By a hash in Python. */
static int
hash_by(const Table *table, PyObject *key, uint64_t *place)
{
    PyObject *bytes = bytes_of(table->module, key);
    PyObject *hash = bytes ? PyObject_CallFunctionObjArgs(table->hasher, bytes, NULL) : NULL;
    Py_XDECREF(bytes);
    if (hash == NULL) {
        return -1;
    }
    *place = PyLong_AsUnsignedLongLong(hash);
    Py_DECREF(hash);
    return *place == UINT64_MAX && PyErr_Occurred() ? -1 : 0;
}

static inline int
place_of(const Table *table, PyObject *key, uint64_t *place)
{
    if (table->hasher != Py_None) {
        return hash_by(table, key, place);
    }
    int usual = hash_usual(key, place);
    return usual > 0 ? 0 : usual < 0 ? -1 : hash_unusual(table->module, key, place);
}

static int
slot_of(const Table *table, uint64_t place, uint32_t *slot)
{
    if (table->native != NULL) {
        *slot = table->native->find(table->native, place);
        return 0;
    }
    PyObject *number = PyLong_FromUnsignedLongLong(place);
    PyObject *found = number ? PyObject_CallFunctionObjArgs(table->find, number, NULL) : NULL;
    Py_XDECREF(number);
    if (found == NULL) {
        return -1;
    }
    unsigned long value = PyLong_AsUnsignedLong(found);
    Py_DECREF(found);
    if (value == (unsigned long)-1 && PyErr_Occurred()) {
        return -1;
    }
    *slot = value < UINT32_MAX ? (uint32_t)value : UINT32_MAX; /* which no table has */
    return 0;
}

/* The node in a slot, for the caller to keep. */
static inline PyObject *
name_at(const Table *table, uint32_t slot)
{
    if (slot < table->size && table->name[slot] != NULL) {
        return Py_NewRef(table->name[slot]);
    }
    return PyErr_Format(PyExc_IndexError, "the finder gave slot %u, where no node is", (unsigned)slot);
}

static PyObject *
table_hash(PyObject *self, PyObject *key)
{
    uint64_t place;
    return place_of((Table *)self, key, &place) < 0 ? NULL : PyLong_FromUnsignedLongLong(place);
}

#endif
