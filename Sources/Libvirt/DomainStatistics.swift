import CLibvirt

/// Groups of statistics (`virDomainStatsTypes`); none: all that the daemon supports.
public struct StatisticsGroups: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let state = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_STATE.rawValue)
    public static let cpu = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_CPU_TOTAL.rawValue)
    public static let balloon = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_BALLOON.rawValue)
    public static let vcpu = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_VCPU.rawValue)
    public static let interface = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_INTERFACE.rawValue)
    public static let block = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_BLOCK.rawValue)
    public static let dirtyRate = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_DIRTYRATE.rawValue)
    /// Counters of the hypervisor itself; libvirt 8.9.
    public static let hypervisor = StatisticsGroups(rawValue: VIR_DOMAIN_STATS_VM.rawValue)
}

/// `virConnectGetAllDomainStatsFlags`.
public struct StatisticsFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let active = StatisticsFlags(rawValue: VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE.rawValue)
    public static let inactive = StatisticsFlags(rawValue: VIR_CONNECT_GET_ALL_DOMAINS_STATS_INACTIVE.rawValue)
    public static let running = StatisticsFlags(rawValue: VIR_CONNECT_GET_ALL_DOMAINS_STATS_RUNNING.rawValue)
    /// Leave out what would have to wait for a QEMU monitor that is busy.
    public static let noWait = StatisticsFlags(rawValue: VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT.rawValue)
    public static let backing = StatisticsFlags(rawValue: VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING.rawValue)
    /// Fail if a group is not supported, instead of leaving it out.
    public static let enforce = StatisticsFlags(rawValue: VIR_CONNECT_GET_ALL_DOMAINS_STATS_ENFORCE_STATS.rawValue)
}

/// A domain's statistics at one instant (`virDomainStatsRecord`). Every value is nil when it was not reported.
public struct DomainStatistics: Sendable, Hashable {
    public let domainName: String
    public let domainUUID: String
    /// Everything, by libvirt's names (`virConnectGetAllDomainStats`).
    public let values: TypedParameters
    private let byName: [String: TypedParameters.Value]

    public init(domainName: String, domainUUID: String, values: TypedParameters) {
        (self.domainName, self.domainUUID, self.values) = (domainName, domainUUID, values)
        byName = Dictionary(values.entries.map { ($0.name, $0.value) }, uniquingKeysWith: { first, _ in first })
    }

    /// A record that stays libvirt's.
    init?(_ record: virDomainStatsRecord) {
        guard let domain = record.dom, let name = borrowed(virDomainGetName(domain)),
              let uuid = uuidString({ virDomainGetUUIDString(domain, $0) }) else { return nil }
        self.init(domainName: name, domainUUID: uuid, values: TypedParameters(record.params, count: record.nparams))
    }

    public func unsigned(_ name: String) -> UInt64? { byName[name]?.unsigned }
    public func integer(_ name: String) -> Int64? { byName[name]?.integer }
    public func string(_ name: String) -> String? {
        if case .string(let value)? = byName[name] { value } else { nil }
    }

    public var state: DomainState? { integer("state.state").map { DomainState(rawValue: Int32(truncatingIfNeeded: $0)) } }
    public var stateReason: Int32? { integer("state.reason").map { Int32(truncatingIfNeeded: $0) } }
    /// CPU time that the whole domain used.
    public var cpuNanoseconds: UInt64? { unsigned("cpu.time") }
    public var cpuUserNanoseconds: UInt64? { unsigned("cpu.user") }
    public var cpuSystemNanoseconds: UInt64? { unsigned("cpu.system") }
    public var balloonCurrentKiB: UInt64? { unsigned("balloon.current") }
    public var balloonMaximumKiB: UInt64? { unsigned("balloon.maximum") }
    public var residentKiB: UInt64? { unsigned("balloon.rss") }
    public var onlineVCPUs: UInt64? { unsigned("vcpu.current") }
    /// The last `startDirtyRateCalculation`: 0 not started, 1 measuring, 2 measured.
    public var dirtyRateStatus: Int64? { integer("dirtyrate.calc_status") }
    public var dirtyRateMegabytesPerSecond: Int64? { integer("dirtyrate.megabytes_per_second") }

    public struct VCPU: Sendable, Hashable {
        public let index: Int
        public let nanoseconds: UInt64?
        /// Wanted to run but could not.
        public let waitNanoseconds: UInt64?
        public let delayNanoseconds: UInt64?
        public let isHalted: Bool?
    }

    public struct Block: Sendable, Hashable {
        /// The target, for example `vda`.
        public let name: String?
        public let path: String?
        public let readRequests, readBytes, readNanoseconds: UInt64?
        public let writeRequests, writeBytes, writeNanoseconds: UInt64?
        public let flushRequests, flushNanoseconds: UInt64?
        public let errors: UInt64?
        public let allocation, capacity, physical: UInt64?
    }

    public struct Interface: Sendable, Hashable {
        public let name: String?
        public let receivedBytes, receivedPackets, receiveErrors, receiveDrops: UInt64?
        public let sentBytes, sentPackets, sendErrors, sendDrops: UInt64?
    }

    public var vcpus: [VCPU] {
        group("vcpu", count: "vcpu.maximum") { index, prefix in
            guard byName[prefix + "state"] != nil else { return nil }
            let halted: Bool? = if case .bool(let value)? = byName[prefix + "halted"] { value } else { nil }
            return VCPU(index: index, nanoseconds: unsigned(prefix + "time"), waitNanoseconds: unsigned(prefix + "wait"),
                        delayNanoseconds: unsigned(prefix + "delay"), isHalted: halted)
        }
    }

    public var blocks: [Block] {
        group("block", count: "block.count") { _, prefix in
            Block(name: string(prefix + "name"), path: string(prefix + "path"),
                  readRequests: unsigned(prefix + "rd.reqs"), readBytes: unsigned(prefix + "rd.bytes"),
                  readNanoseconds: unsigned(prefix + "rd.times"),
                  writeRequests: unsigned(prefix + "wr.reqs"), writeBytes: unsigned(prefix + "wr.bytes"),
                  writeNanoseconds: unsigned(prefix + "wr.times"),
                  flushRequests: unsigned(prefix + "fl.reqs"), flushNanoseconds: unsigned(prefix + "fl.times"),
                  errors: unsigned(prefix + "errors"), allocation: unsigned(prefix + "allocation"),
                  capacity: unsigned(prefix + "capacity"), physical: unsigned(prefix + "physical"))
        }
    }

    public var interfaces: [Interface] {
        group("net", count: "net.count") { _, prefix in
            Interface(name: string(prefix + "name"),
                      receivedBytes: unsigned(prefix + "rx.bytes"), receivedPackets: unsigned(prefix + "rx.pkts"),
                      receiveErrors: unsigned(prefix + "rx.errs"), receiveDrops: unsigned(prefix + "rx.drop"),
                      sentBytes: unsigned(prefix + "tx.bytes"), sentPackets: unsigned(prefix + "tx.pkts"),
                      sendErrors: unsigned(prefix + "tx.errs"), sendDrops: unsigned(prefix + "tx.drop"))
        }
    }

    /// The numbered members of a group. A count beyond any real domain's is not believed.
    private func group<Member>(_ name: String, count: String, _ member: (Int, String) -> Member?) -> [Member] {
        (0..<Int(min(unsigned(count) ?? 0, 65_536))).compactMap { member($0, "\(name).\($0).") }
    }
}

extension Connection {
    /// Statistics of all domains that the flags select (`virConnectGetAllDomainStats`).
    public func statistics(_ groups: StatisticsGroups = [], flags: StatisticsFlags = []) throws(LibvirtError) -> [DomainStatistics] {
        try call("virConnectGetAllDomainStats") { pointer in
            var records: UnsafeMutablePointer<virDomainStatsRecordPtr?>?
            let count = virConnectGetAllDomainStats(pointer, groups.rawValue, &records, flags.rawValue)
            return ok(count).map { ownedStatistics(records, count: $0) }
        }
    }

    /// Statistics of these domains of this connection, in one call (`virDomainListGetStats`).
    public func statistics(of domains: [Domain], _ groups: StatisticsGroups = [], flags: StatisticsFlags = []) throws(LibvirtError) -> [DomainStatistics] {
        guard !domains.isEmpty else { return [] }
        return try withExtendedLifetime(domains) { () throws(LibvirtError) in
            try call("virDomainListGetStats") { _ in
                var records: UnsafeMutablePointer<virDomainStatsRecordPtr?>?
                var list = domains.map { Optional($0.pointer) } + [nil]
                let count = virDomainListGetStats(&list, groups.rawValue, &records, flags.rawValue)
                return ok(count).map { ownedStatistics(records, count: $0) }
            }
        }
    }
}

extension Domain {
    /// This domain's statistics (`virDomainListGetStats`).
    public func statistics(_ groups: StatisticsGroups = [], flags: StatisticsFlags = []) throws(LibvirtError) -> DomainStatistics {
        let records = try call("virDomainListGetStats") { pointer in
            var records: UnsafeMutablePointer<virDomainStatsRecordPtr?>?
            var domains: [OpaquePointer?] = [pointer, nil]
            let count = virDomainListGetStats(&domains, groups.rawValue, &records, flags.rawValue)
            return ok(count).map { ownedStatistics(records, count: $0) }
        }
        guard let record = records.first else {
            throw LibvirtError(.noDomain, message: "No statistics for domain '\(name)'", call: "virDomainListGetStats")
        }
        return record
    }
}

/// Takes over libvirt's list (`virDomainStatsRecordListFree`).
private func ownedStatistics(_ records: UnsafeMutablePointer<virDomainStatsRecordPtr?>?, count: Int32) -> [DomainStatistics] {
    defer { virDomainStatsRecordListFree(records) }
    return (0..<Int(count)).compactMap { records?[$0].flatMap { DomainStatistics($0.pointee) } }
}
