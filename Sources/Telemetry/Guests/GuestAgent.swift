import Foundation
import FoundationXML
import Libvirt
import Platform

/// One guest's agent: asked only for what it offers, with limits on time and size. Its death is a fact: the KPIs are absent, and it is
/// said once. Used by one thread at a time.
final class GuestAgent: @unchecked Sendable {
    static let everyMs = 15_000.0
    /// A guest that boots connects soon; one without the channel only after somebody has plugged it in.
    private static let untilConnectedMs = 5000.0
    private static let withoutChannelMs = 60_000.0
    /// One that did not answer is left alone: who waits for it keeps others from asking.
    static let afterSilenceMs = 120_000.0
    private static let seconds: Int32 = 2
    /// File systems and CPUs of one guest: more than any has.
    private static let mostMembers = 1024

    private let name: String
    private var rates = RateTable()
    private var commands: Set<String>?
    private var isSilent = false
    private var nextAt = MonotonicTime(nanoseconds: 0)

    init(name: String) { self.name = name }

    func isDue(_ now: MonotonicTime) -> Bool { now >= nextAt }

    /// Asks, unless there is no agent to ask. `mayAsk` is looked at before each question: no guest is asked while it changes hosts.
    func look(_ domain: Domain, mayAsk: () -> Bool) -> [String: Double]? {
        let now = MonotonicTime.now
        nextAt = now.adding(milliseconds: Self.everyMs)
        guard mayAsk(), let xml = try? domain.xml() else { return nil }
        guard Self.isConnected(xml) else {
            commands = nil
            nextAt = now.adding(milliseconds: xml.contains(Self.channel) ? Self.untilConnectedMs : Self.withoutChannelMs)
            return nil
        }
        do {
            let values = try questions(domain, now, mayAsk)
            isSilent = false
            return values
        } catch let error as LibvirtError where error.isOperationInvalid {
            // Within an epoch the guest does not run.
            return nil
        } catch {
            nextAt = now.adding(milliseconds: Self.afterSilenceMs)
            commands = nil
            if !isSilent { Log.info("\(name): its guest agent does not answer: \(error)") }
            isSilent = true
            return nil
        }
    }

    private static let channel = "org.qemu.guest_agent.0"

    /// The channel is there and somebody inside holds its other end.
    static func isConnected(_ xml: String) -> Bool {
        // Few domains are without the name at all, but parsing is what costs.
        guard xml.contains(channel), let root = try? XMLDocument(xmlString: xml).rootElement() else { return false }
        return (try? root.nodes(forXPath: "devices/channel/target[@name='\(channel)'][@state='connected']"))?.isEmpty == false
    }

    private func questions(_ domain: Domain, _ now: MonotonicTime, _ mayAsk: () -> Bool) throws -> [String: Double] {
        func ask<Answer: Decodable>(_ command: String, _ type: Answer.Type) throws -> Answer? {
            guard mayAsk() else { return nil }
            return try domain.agent(command, seconds: Self.seconds, as: type)
        }
        if commands == nil { commands = try ask("guest-info", AgentReplies.Info.self)?.enabledNames }
        guard let commands else { return [:] }
        var values: [String: Double] = [:]
        if commands.contains("guest-get-load"), let load = try ask("guest-get-load", AgentReplies.Load.self) {
            values.note("guest_load_1m", load.load1m)
        }
        if commands.contains("guest-get-cpustats"), let cpus = try ask("guest-get-cpustats", [AgentReplies.CPU].self) { add(cpus, now, &values) }
        if commands.contains("guest-get-diskstats"), let disks = try ask("guest-get-diskstats", [AgentReplies.Disk].self) { add(disks, now, &values) }
        if commands.contains("guest-get-fsinfo"), let systems = try ask("guest-get-fsinfo", [AgentReplies.FileSystem].self) { add(systems, &values) }
        if commands.contains("guest-get-users"), let users = try ask("guest-get-users", [AgentReplies.User].self) {
            values.note("guest_users_count", Double(users.count))
        }
        return values
    }

    func add(_ cpus: [AgentReplies.CPU], _ now: MonotonicTime, _ values: inout [String: Double]) {
        let cpus = cpus.prefix(Self.mostMembers)
        func grown(_ name: String, _ count: (AgentReplies.CPU) -> UInt64) -> Double? {
            rates.growth(name, cpus.reduce(0) { $0 &+ count($1) }, at: now)?.count
        }
        let parts = (total: grown("total", \.total), busy: grown("busy", \.busy), wait: grown("iowait") { $0.iowait ?? 0 }, steal: grown("steal") { $0.steal ?? 0 })
        guard let total = parts.total, total > 0 else { return }
        values.note("guest_cpu_percent", parts.busy.map { $0 / total * 100 })
        values.note("guest_cpu_iowait_percent", parts.wait.map { $0 / total * 100 })
        values.note("guest_cpu_steal_percent", parts.steal.map { $0 / total * 100 })
    }

    func add(_ disks: [AgentReplies.Disk], _ now: MonotonicTime, _ values: inout [String: Double]) {
        let disks = disks.filter(\.isWhole).prefix(Self.mostMembers)
        guard !disks.isEmpty else { return }
        // Sectors of 512 bytes, whatever the device has (Linux Documentation/admin-guide/iostats.rst).
        values.note("guest_disk_read_bytes_per_second", rates.perSecond("read", disks.reduce(0) { $0 &+ ($1.stats.readSectors ?? 0) }, at: now).map { $0 * 512 })
        values.note("guest_disk_write_bytes_per_second", rates.perSecond("write", disks.reduce(0) { $0 &+ ($1.stats.writeSectors ?? 0) }, at: now).map { $0 * 512 })
        let busiest = disks.compactMap { rates.perSecond("ticks \($0.name)", $0.stats.totalTicks, at: now) }.max()
        values.note("guest_disk_busy_percent", busiest.map { $0 / 10 })
    }

    func add(_ systems: [AgentReplies.FileSystem], _ values: inout [String: Double]) {
        let parts = systems.prefix(Self.mostMembers).compactMap { system -> Double? in
            guard let used = system.usedBytes, let total = system.totalBytes, total > 0 else { return nil }
            return used / total * 100
        }
        values.note("guest_filesystem_used_percent", parts.max())
    }
}
