import Foundation
import Libvirt
import Platform

/// What one look at a domain gave.
public struct DomainReading: Sendable {
    public let uuid: String
    public let name: String
    public var values: [String: Double]
    /// Where its disks lie that are files.
    public var folders: Set<String> = []
}

/// How a domain may be looked at at this moment, in the eyes of whoever protects it.
public enum DomainAccess: Sendable {
    /// No question may reach its QEMU or its guest: it changes hosts, or is a shadow that waits.
    case none
    /// Statistics and agent; its dirty rate is known from its epochs.
    case protected
    /// Statistics, agent and now and then a measurement of its dirty rate.
    case free
}

/// Measures the running domains of this host through a libvirt connection of its own, on threads of its own: a libvirt that hangs, or a QEMU behind
/// it, holds up nobody, not even the next look.
///
/// One call asks for all of them. When that has not come back, because one domain's QEMU hangs, each domain is asked alone until it has.
public final class DomainCollector: @unchecked Sendable {
    private static let limitMs = 1500.0
    /// Beyond these a host has other troubles.
    private static let mostDomains = 512
    /// QEMU looks at 512 pages of each GiB twice, a second apart: a hundredth of a second of CPU time for 16 GiB.
    private static let dirtyRateEveryMs = 300_000.0
    private static let dirtyRateSeconds: Int32 = 1
    private static let dirtyRateAnswerMs = 10_000.0

    private struct Entry {
        let probe: Probe<DomainStatistics>
        let measurement: Probe<Bool>
        var name: String
        var counters = DomainCounters()
        var measuredAt: MonotonicTime
        var seenAt: MonotonicTime
    }

    private let libvirt: ReconnectingConnection
    private let meter: CPUMeter
    private let access: @Sendable (String) -> DomainAccess
    private let all: Probe<[DomainStatistics]>
    private let list: Probe<[Domain]>
    private let agents: AgentRounds
    private var entries: [String: Entry] = [:]
    /// Until when a measured dirty rate is asked for: QEMU gets that question only when there is something new to tell.
    private var dirtyRateUntil = MonotonicTime(nanoseconds: 0)

    /// - Parameters:
    ///   - mayExecute: programs may be run in guests whose agent offers that.
    ///   - access: what may be done with a domain, by UUID; asked from several threads.
    public init(libvirtURI: String, meter: CPUMeter, mayExecute: Bool, access: @escaping @Sendable (String) -> DomainAccess) {
        self.meter = meter
        self.access = access
        libvirt = ReconnectingConnection(libvirtURI)
        all = Probe("tele-libvirt", meter: meter)
        list = Probe("tele-domains", meter: meter)
        agents = AgentRounds(libvirtURI: libvirtURI, meter: meter, mayExecute: mayExecute, access: access)
        libvirt.start()
    }

    /// One look at every running domain; call it from one thread. Domains that could not be asked in time are not among them.
    public func sample(until deadline: MonotonicTime) -> [DomainReading] {
        guard let connection = libvirt.current else { return [] }
        let limit = min(deadline, MonotonicTime.now.adding(milliseconds: Self.limitMs))
        var groups = DomainCounters.groups
        if MonotonicTime.now < dirtyRateUntil { groups.insert(.dirtyRate) }
        let wanted = groups
        all.start { [access] in
            guard let domains = try? connection.domains(.active).filter({ access($0.uuid) != .none }) else { return nil }
            return try? connection.statistics(of: Array(domains.prefix(Self.mostDomains)), wanted, flags: .noWait)
        }
        let found = all.take(until: limit) ?? oneByOne(connection, wanted, until: deadline)
        let now = MonotonicTime.now
        let readings = found.compactMap { read($0, now) }
        entries = entries.filter { now.milliseconds(since: $0.value.seenAt) < Self.dirtyRateEveryMs || $0.value.probe.isBusy || $0.value.measurement.isBusy }
        measureDirtyRates(connection, now)
        let agents = agents.round(entries.mapValues(\.name), now)
        return readings.map { reading in
            var reading = reading
            reading.values.merge(agents[reading.uuid] ?? [:]) { _, new in new }
            return reading
        }
    }

    public func stop() {
        libvirt.stop()
        agents.stop()
    }

    private func oneByOne(_ connection: Connection, _ groups: StatisticsGroups, until deadline: MonotonicTime) -> [DomainStatistics] {
        list.start { [access] in try? connection.domains(.active).filter { access($0.uuid) != .none } }
        guard let domains = list.take(until: min(deadline, MonotonicTime.now.adding(milliseconds: 500)))?.prefix(Self.mostDomains) else { return [] }
        for domain in domains {
            note(domain.uuid, domain.name)
            entries[domain.uuid]?.probe.start { try? domain.statistics(groups, flags: .noWait) }
        }
        let limit = min(deadline, MonotonicTime.now.adding(milliseconds: 500))
        return domains.compactMap { entries[$0.uuid]?.probe.take(until: limit) }
    }

    private func note(_ uuid: String, _ name: String) {
        let now = MonotonicTime.now
        if entries[uuid] == nil {
            entries[uuid] = Entry(probe: Probe("tele-domain", meter: meter), measurement: Probe("tele-dirty", meter: meter), name: name, measuredAt: now, seenAt: now)
        }
        entries[uuid]?.name = name
        entries[uuid]?.seenAt = now
    }

    private func read(_ statistics: DomainStatistics, _ now: MonotonicTime) -> DomainReading? {
        let uuid = statistics.domainUUID
        let access = access(uuid)
        guard access != .none else { return nil }
        note(uuid, statistics.domainName)
        guard var values = entries[uuid]?.counters.values(statistics, at: now) else { return nil }
        // Of a time before it was protected.
        if access == .protected { values["dirty_bytes_per_second"] = nil }
        let files = statistics.blocks.compactMap(\.path).filter { $0.hasPrefix("/") && !$0.hasPrefix("/dev/") }
        return DomainReading(uuid: uuid, name: statistics.domainName, values: values, folders: Set(files.map { ($0 as NSString).deletingLastPathComponent }))
    }

    /// Of guests whose epochs do not tell it, now and then.
    private func measureDirtyRates(_ connection: Connection, _ now: MonotonicTime) {
        for (uuid, entry) in entries {
            let access = access
            guard access(uuid) == .free, !entry.measurement.isBusy, now.milliseconds(since: entry.measuredAt) >= Self.dirtyRateEveryMs else { continue }
            entries[uuid]?.measuredAt = now
            dirtyRateUntil = now.adding(milliseconds: Self.dirtyRateAnswerMs)
            entry.measurement.start {
                guard let domain = try? connection.lookup(uuid: uuid), access(uuid) == .free else { return nil }
                Self.measureDirtyRate(domain)
                return true
            }
        }
    }

    /// Not while any job of libvirt's runs, a migration above all.
    private static func measureDirtyRate(_ domain: Domain) {
        guard let job = try? domain.jobInfo(), job.type == .none else { return }
        do {
            try domain.startDirtyRateCalculation(seconds: dirtyRateSeconds)
        } catch {
            Log.debug("\(domain.name): its dirty rate is not measured: \(error)")
        }
    }
}
