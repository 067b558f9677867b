// The control socket, and the one message of libvirt's hook.
@_exported import HookProtocol
