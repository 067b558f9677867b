// Whoever uses Platform sees these as its own. They stand apart because libvirt's hook needs them without Foundation.
@_exported import SystemCalls
