import ControlProtocol
import Foundation

/// Memory that has to be on huge pages.
public struct HugePagesNeed: Codable, Sendable, Equatable {
    /// 0: the host's usual size.
    public var pageBytes: UInt64
    public var byteCount: UInt64
}

/// UEFI in a flash device.
public struct FirmwareNeed: Codable, Sendable, Equatable {
    /// The code, a file that comes with the host's firmware package, and its size here; nil: it could not be read.
    public var loader: String
    public var loaderBytes: UInt64?
    /// The guest's own variables, a file that goes over with it; nil when the firmware has none.
    public var nvram: String?
}

/// What a guest's definition needs of the shadow's host besides memory, disks and a CPU model.
public struct DefinitionNeeds: Codable, Sendable, Equatable {
    public var hugePages: [HugePagesNeed] = []
    public var firmware: FirmwareNeed?
    /// Libvirt networks and bridges that its interfaces are plugged into.
    public var networks: [String] = []
    public var bridges: [String] = []
    /// An interface insists on the kernel's vhost-net (`<driver name='vhost'/>`); left open, libvirt takes what there is.
    public var needsVhostNet = false
    /// `<host><cpu>` of the primary's host, for a guest that sees that very CPU (`host-passthrough`).
    public var hostCPU: String?
    /// Devices of the host that QEMU opens: `/dev/vhost-vsock`.
    public var devices: [String] = []
    /// It has an emulated TPM, which is a program beside QEMU.
    public var needsTPMEmulator = false
    /// Absent: its memory may come from anywhere.
    public var numa: NUMANeed?
}

extension DomainDefinition {
    /// - Parameter hostCapabilities: libvirt's XML about this host; asked for only when the CPU is passed through.
    func needs(hostCapabilities: () throws -> String) rethrows -> DefinitionNeeds {
        var needs = DefinitionNeeds()
        needs.hugePages = hugePages
        needs.firmware = firmware.map { FirmwareNeed(loader: $0.loader, loaderBytes: FileSize.of($0.loader), nvram: $0.nvram) }
        needs.networks = Set(values("devices/interface[@type='network']/source/@network")).sorted()
        needs.bridges = Set(values("devices/interface[@type='bridge']/source/@bridge")).sorted()
        needs.needsVhostNet = !elements("devices/interface/driver[@name='vhost']").isEmpty
        if !elements("devices/vsock").isEmpty { needs.devices.append("/dev/vhost-vsock") }
        needs.needsTPMEmulator = hasTPMEmulator
        needs.numa = numaNeed
        if isCPUPassedThrough { needs.hostCPU = HostCPU.element(of: try hostCapabilities()) }
        return needs
    }

    /// Its state lies in another process (swtpm), but goes through QEMU's stream with that of the devices (`tpm_emulator.c`, `vmstate_tpm_emulator`).
    var hasTPMEmulator: Bool { !elements("devices/tpm/backend[@type='emulator']").isEmpty }

    /// The guest sees its host's CPU (`host-passthrough`), or all of it that QEMU has (`maximum`).
    var isCPUPassedThrough: Bool { ["host-passthrough", "maximum"].contains(text("cpu/@mode") ?? "") }
}
