// The syntax of the file, without the keys: libvirt's hook reads it, too.
@_exported import ConfFile
