import CLibvirt

/// The host's hardware (`virNodeInfo`).
public struct NodeInfo: Sendable, Hashable {
    /// The CPU's architecture, for example `x86_64`.
    public let model: String
    public let memoryKiB: UInt64
    /// CPUs that are online.
    public let cpus: Int
    /// 0 when not known.
    public let megahertz: Int
    public let numaNodes: Int
    public let socketsPerNode: Int
    public let coresPerSocket: Int
    public let threadsPerCore: Int
}

/// How a CPU compares to what a host offers (`virCPUCompareResult`).
public struct CPUComparison: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let incompatible = CPUComparison(rawValue: 0)
    public static let identical = CPUComparison(rawValue: 1)
    /// The host offers more than the CPU asks for.
    public static let superset = CPUComparison(rawValue: 2)
    public static let names: [Int32: String] = [0: "incompatible", 1: "identical", 2: "superset"]
}

/// `virConnectCompareCPUFlags`.
public struct CompareCPUFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Throw `cpuIncompatible`, which names the features that are missing, instead of answering `.incompatible`.
    public static let failIncompatible = CompareCPUFlags(rawValue: VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE.rawValue)
    public static let validateXML = CompareCPUFlags(rawValue: VIR_CONNECT_COMPARE_CPU_VALIDATE_XML.rawValue)
}

extension Connection {
    /// As libvirt understood it (`virConnectGetURI`).
    public func uri() throws(LibvirtError) -> String { try call("virConnectGetURI") { owned(virConnectGetURI($0)) } }

    /// The host's name, as the daemon sees it (`virConnectGetHostname`).
    public func hostname() throws(LibvirtError) -> String { try call("virConnectGetHostname") { owned(virConnectGetHostname($0)) } }

    /// The driver's name, for example `QEMU` (`virConnectGetType`).
    public func type() throws(LibvirtError) -> String { try call("virConnectGetType") { borrowed(virConnectGetType($0)) } }

    /// The daemon's libvirt (`virConnectGetLibVersion`).
    public func libvirtVersion() throws(LibvirtError) -> Version {
        try call("virConnectGetLibVersion") { pointer in
            var number: UInt = 0
            return virConnectGetLibVersion(pointer, &number) == 0 ? Version(number: number) : nil
        }
    }

    /// The hypervisor's, for example QEMU's (`virConnectGetVersion`).
    public func hypervisorVersion() throws(LibvirtError) -> Version {
        try call("virConnectGetVersion") { pointer in
            var number: UInt = 0
            return virConnectGetVersion(pointer, &number) == 0 ? Version(number: number) : nil
        }
    }

    /// This process' own libvirt (`virGetVersion`).
    public static func clientVersion() throws(LibvirtError) -> Version {
        var number: UInt = 0
        guard virGetVersion(&number, nil, nil) == 0 else { throw .last("virGetVersion") }
        return Version(number: number)
    }

    /// `virConnectIsEncrypted`.
    public func isEncrypted() throws(LibvirtError) -> Bool { try call("virConnectIsEncrypted") { truth(virConnectIsEncrypted($0)) } }

    /// Encrypted, or not leaving this machine (`virConnectIsSecure`).
    public func isSecure() throws(LibvirtError) -> Bool { try call("virConnectIsSecure") { truth(virConnectIsSecure($0)) } }

    /// Host CPU, topology, guests that can run (`virConnectGetCapabilities`).
    public func capabilitiesXML() throws(LibvirtError) -> String {
        try call("virConnectGetCapabilities") { owned(virConnectGetCapabilities($0)) }
    }

    /// What domains of a kind may use; nil leaves a choice to libvirt (`virConnectGetDomainCapabilities`).
    public func domainCapabilitiesXML(emulator: String? = nil, arch: String? = nil, machine: String? = nil,
                                      type: String? = nil) throws(LibvirtError) -> String {
        try call("virConnectGetDomainCapabilities") {
            owned(virConnectGetDomainCapabilities($0, emulator, arch, machine, type, 0))
        }
    }

    /// `virNodeGetInfo`.
    public func nodeInfo() throws(LibvirtError) -> NodeInfo {
        let info = try call("virNodeGetInfo") { pointer in
            var info = virNodeInfo()
            return virNodeGetInfo(pointer, &info) == 0 ? info : nil
        }
        let model = withUnsafeBytes(of: info.model) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        return NodeInfo(model: model, memoryKiB: UInt64(info.memory), cpus: Int(info.cpus), megahertz: Int(info.mhz),
                        numaNodes: Int(info.nodes), socketsPerNode: Int(info.sockets), coresPerSocket: Int(info.cores),
                        threadsPerCore: Int(info.threads))
    }

    /// Free memory of the host in bytes (`virNodeGetFreeMemory`).
    public func freeMemory() throws(LibvirtError) -> UInt64 {
        try call("virNodeGetFreeMemory") { pointer in
            let bytes = virNodeGetFreeMemory(pointer)
            return bytes == 0 ? nil : bytes
        }
    }

    /// SMBIOS facts as XML (`virConnectGetSysinfo`).
    public func sysinfo() throws(LibvirtError) -> String { try call("virConnectGetSysinfo") { owned(virConnectGetSysinfo($0, 0)) } }

    /// Compares a guest or host CPU (XML) with what the hypervisor on this host can provide; nil leaves a choice to libvirt
    /// (`virConnectCompareHypervisorCPU`).
    public func compareHypervisorCPU(xml: String, emulator: String? = nil, arch: String? = nil, machine: String? = nil,
                                     type: String? = nil, flags: CompareCPUFlags = []) throws(LibvirtError) -> CPUComparison {
        try call("virConnectCompareHypervisorCPU") {
            ok(virConnectCompareHypervisorCPU($0, emulator, arch, machine, type, xml, flags.rawValue)).map(CPUComparison.init(rawValue:))
        }
    }

    /// The CPU that all of `cpus` (XML each) can run on this hypervisor (`virConnectBaselineHypervisorCPU`).
    public func baselineHypervisorCPU(_ cpus: [String], emulator: String? = nil, arch: String? = nil, machine: String? = nil,
                                      type: String? = nil) throws(LibvirtError) -> String {
        try call("virConnectBaselineHypervisorCPU") { pointer in
            withCStrings(cpus) {
                owned(virConnectBaselineHypervisorCPU(pointer, emulator, arch, machine, type, $0, UInt32(cpus.count), 0))
            }
        }
    }
}
