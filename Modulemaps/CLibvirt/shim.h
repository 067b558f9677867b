/* libvirt's public C API and its QEMU extension (monitor passthrough). */
#include <libvirt/libvirt.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
