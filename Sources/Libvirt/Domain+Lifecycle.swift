import CLibvirt

extension Domain {
    /// Starts a defined domain (`virDomainCreateWithFlags`).
    public func start(flags: StartFlags = []) throws(LibvirtError) {
        _ = try call("virDomainCreateWithFlags") { ok(virDomainCreateWithFlags($0, flags.rawValue)) }
    }

    /// Stops the guest's CPUs (`virDomainSuspend`).
    public func suspend() throws(LibvirtError) {
        _ = try call("virDomainSuspend") { ok(virDomainSuspend($0)) }
    }

    /// Lets them run on (`virDomainResume`).
    public func resume() throws(LibvirtError) {
        _ = try call("virDomainResume") { ok(virDomainResume($0)) }
    }

    /// Ends the guest without asking it. `isOperationInvalid`: it does not run (`virDomainDestroyFlags`).
    public func destroy(flags: DestroyFlags = []) throws(LibvirtError) {
        _ = try call("virDomainDestroyFlags") { ok(virDomainDestroyFlags($0, flags.rawValue)) }
    }

    /// Asks the guest to shut down; returns before it has (`virDomainShutdownFlags`).
    public func shutdown(flags: ShutdownFlags = []) throws(LibvirtError) {
        _ = try call("virDomainShutdownFlags") { ok(virDomainShutdownFlags($0, flags.rawValue)) }
    }

    /// The reset button (`virDomainReset`).
    public func reset() throws(LibvirtError) {
        _ = try call("virDomainReset") { ok(virDomainReset($0, 0)) }
    }

    /// Removes the stored definition; a running guest goes on as a transient one (`virDomainUndefineFlags`).
    public func undefine(flags: UndefineFlags = []) throws(LibvirtError) {
        _ = try call("virDomainUndefineFlags") { ok(virDomainUndefineFlags($0, flags.rawValue)) }
    }
}

/// `virDomainCreateFlags`.
public struct StartFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// CPUs stopped until `resume`.
    public static let paused = StartFlags(rawValue: VIR_DOMAIN_START_PAUSED.rawValue)
    /// Destroyed when the connection that started it closes.
    public static let autodestroy = StartFlags(rawValue: VIR_DOMAIN_START_AUTODESTROY.rawValue)
    public static let bypassCache = StartFlags(rawValue: VIR_DOMAIN_START_BYPASS_CACHE.rawValue)
    /// Boots even if a managed save image waits; the image is thrown away.
    public static let forceBoot = StartFlags(rawValue: VIR_DOMAIN_START_FORCE_BOOT.rawValue)
    /// Checks the XML against the schema.
    public static let validate = StartFlags(rawValue: VIR_DOMAIN_START_VALIDATE.rawValue)
    /// Since libvirt 8.1.
    public static let resetNVRAM = StartFlags(rawValue: VIR_DOMAIN_START_RESET_NVRAM.rawValue)
}

/// `virDomainDestroyFlagsValues`.
public struct DestroyFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Only SIGTERM: fails rather than kill a QEMU that does not end.
    public static let graceful = DestroyFlags(rawValue: VIR_DOMAIN_DESTROY_GRACEFUL.rawValue)
    /// Since libvirt 8.3.
    public static let removeLogs = DestroyFlags(rawValue: VIR_DOMAIN_DESTROY_REMOVE_LOGS.rawValue)
}

/// `virDomainShutdownFlagValues`; none: the hypervisor chooses.
public struct ShutdownFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let acpiPowerButton = ShutdownFlags(rawValue: VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN.rawValue)
    public static let guestAgent = ShutdownFlags(rawValue: VIR_DOMAIN_SHUTDOWN_GUEST_AGENT.rawValue)
}

/// `virDomainUndefineFlagsValues`.
public struct UndefineFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let managedSave = UndefineFlags(rawValue: VIR_DOMAIN_UNDEFINE_MANAGED_SAVE.rawValue)
    public static let snapshotsMetadata = UndefineFlags(rawValue: VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA.rawValue)
    public static let nvram = UndefineFlags(rawValue: VIR_DOMAIN_UNDEFINE_NVRAM.rawValue)
    public static let keepNVRAM = UndefineFlags(rawValue: VIR_DOMAIN_UNDEFINE_KEEP_NVRAM.rawValue)
    public static let checkpointsMetadata = UndefineFlags(rawValue: VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA.rawValue)
    /// TPM state; since libvirt 8.9.
    public static let tpm = UndefineFlags(rawValue: VIR_DOMAIN_UNDEFINE_TPM.rawValue)
    public static let keepTPM = UndefineFlags(rawValue: VIR_DOMAIN_UNDEFINE_KEEP_TPM.rawValue)
}
