/* The floor: a ring as a C extension for one version of CPython would have it, with nothing but the hot path. It takes
 * str only, checks nothing, cannot change, and reads the objects' insides. `bench/placement.py` compares holdfast with
 * it. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../src/holdfast/placement/_kernel_hash.h"

typedef struct {
    PyObject_HEAD
    PyObject *points, *owners, *names; /* bytes of sorted u64, bytes of u32 (one more than points), tuple of str */
    uint32_t *guide;
    int shift;
} Floor;

static inline PyObject *
node_of(const Floor *floor, PyObject *key)
{
    Py_ssize_t size;
    const char *text;
    if (PyUnicode_IS_COMPACT_ASCII(key)) {
        text = (const char *)PyUnicode_1BYTE_DATA(key);
        size = PyUnicode_GET_LENGTH(key);
    }
    else if ((text = PyUnicode_AsUTF8AndSize(key, &size)) == NULL) {
        return NULL;
    }
    uint64_t place = xxh64(text, (size_t)size, 0);
    const uint64_t *points = (const uint64_t *)PyBytes_AS_STRING(floor->points);
    uint64_t top = place >> floor->shift;
    size_t low = floor->guide[top], high = floor->guide[top + 1];
    while (low < high && points[low] < place) {
        low++;
    }
    return Py_NewRef(PyTuple_GET_ITEM(floor->names, ((const uint32_t *)PyBytes_AS_STRING(floor->owners))[low]));
}

static PyObject *
floor_get_node(PyObject *self, PyObject *key)
{
    return node_of((Floor *)self, key);
}

static PyObject *
floor_locate(PyObject *self, PyObject *keys)
{
    Py_ssize_t count = PyList_GET_SIZE(keys);
    PyObject *names = PyList_New(count);
    for (Py_ssize_t i = 0; names != NULL && i < count; i++) {
        PyList_SET_ITEM(names, i, node_of((Floor *)self, PyList_GET_ITEM(keys, i)));
    }
    return names;
}

/* Floor(points, owners, names) */
static PyObject *
floor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *points, *owners, *names;
    if (!PyArg_ParseTuple(args, "SSO!", &points, &owners, &PyTuple_Type, &names)) {
        return NULL;
    }
    Floor *floor = (Floor *)type->tp_alloc(type, 0);
    if (floor == NULL) {
        return NULL;
    }
    floor->points = Py_NewRef(points);
    floor->owners = Py_NewRef(owners);
    floor->names = Py_NewRef(names);
    size_t count = (size_t)PyBytes_GET_SIZE(points) / sizeof(uint64_t);
    int bits = 1;
    while ((size_t)1 << bits < count) {
        bits++;
    }
    floor->shift = 64 - bits;
    floor->guide = PyMem_Calloc(((size_t)1 << bits) + 1, sizeof *floor->guide);
    if (floor->guide == NULL) {
        Py_DECREF(floor);
        return PyErr_NoMemory();
    }
    for (size_t i = 0; i < count; i++) {
        floor->guide[(((const uint64_t *)PyBytes_AS_STRING(points))[i] >> floor->shift) + 1]++;
    }
    for (size_t top = 0; top < (size_t)1 << bits; top++) {
        floor->guide[top + 1] += floor->guide[top];
    }
    return (PyObject *)floor;
}

static void
floor_dealloc(PyObject *self)
{
    Floor *floor = (Floor *)self;
    PyMem_Free(floor->guide);
    Py_DECREF(floor->points);
    Py_DECREF(floor->owners);
    Py_DECREF(floor->names);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef floor_methods[] = {
    {"get_node", floor_get_node, METH_O, NULL},
    {"locate", floor_locate, METH_O, NULL},
    {NULL},
};

static PyTypeObject floor_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "placement_floor.Floor",
    .tp_basicsize = sizeof(Floor),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = floor_new,
    .tp_dealloc = floor_dealloc,
    .tp_methods = floor_methods,
};

static PyModuleDef floor_module = {PyModuleDef_HEAD_INIT, .m_name = "placement_floor", .m_size = -1};

PyMODINIT_FUNC
PyInit_placement_floor(void)
{
    PyObject *module = PyModule_Create(&floor_module);
    if (module != NULL && PyModule_AddType(module, &floor_type) < 0) {
        Py_CLEAR(module);
    }
    return module;
}
