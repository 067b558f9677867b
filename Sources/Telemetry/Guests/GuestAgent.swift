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
    /// For all questions of one look.
    private static let limitMs = 10_000.0
    /// File systems and CPUs of one guest: more than any has.
    private static let mostMembers = 1024

    private let name: String
    /// Programs may be run in the guest, where the agent offers that.
    private let mayExecute: Bool
    private var journal = GuestJournal()
    private var rates = RateTable()
    private var commands: Set<String>?
    private var isSilent = false
    private var nextAt = MonotonicTime(nanoseconds: 0)
    /// From when on it is to be asked.
    var dueSince: MonotonicTime { nextAt }

    init(name: String, mayExecute: Bool = true) { (self.name, self.mayExecute) = (name, mayExecute) }

    func isDue(_ now: MonotonicTime) -> Bool { now >= nextAt }

    /// Asks, unless there is no agent to ask. `mayAsk` is looked at before each question: no guest is asked while it changes hosts.
    func look(_ domain: Domain, mayAsk: @escaping () -> Bool) -> [String: Double]? {
        let now = MonotonicTime.now
        nextAt = now.adding(milliseconds: Self.everyMs)
        guard mayAsk(), let xml = try? domain.xml() else { return nil }
        guard Self.isConnected(xml) else {
            commands = nil
            nextAt = now.adding(milliseconds: xml.contains(Self.channel) ? Self.untilConnectedMs : Self.withoutChannelMs)
            return nil
        }
        return look(AgentChannel(limitMs: Self.limitMs, mayAsk: mayAsk) { try domain.agentJSON($0, seconds: $1) }, now)
    }

    /// The same over any way to an agent.
    func look(_ channel: AgentChannel, _ now: MonotonicTime) -> [String: Double]? {
        var values: [String: Double] = [:]
        do {
            try questions(channel, now, &values)
            isSilent = false
        } catch is AgentChannel.Refusal {
            // What is known by then counts.
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
        return values
    }

    private static let channel = "org.qemu.guest_agent.0"

    /// The channel is there and somebody inside holds its other end.
    static func isConnected(_ xml: String) -> Bool {
        // Few domains are without the name at all, but parsing is what costs.
        guard xml.contains(channel), let root = try? XMLDocument(xmlString: xml).rootElement() else { return false }
        return (try? root.nodes(forXPath: "devices/channel/target[@name='\(channel)'][@state='connected']"))?.isEmpty == false
    }

    /// Throws when the agent does not answer at all. What it answers wrongly, or cannot do in this guest, it is not asked again.
    private func questions(_ channel: AgentChannel, _ now: MonotonicTime, _ values: inout [String: Double]) throws {
        if commands == nil { commands = try channel.ask("guest-info", as: AgentReplies.Info.self).enabledNames }
        try part(["guest-get-load"]) { values.note("guest_load_1m", try channel.ask("guest-get-load", as: AgentReplies.Load.self).load1m) }
        try part(["guest-get-cpustats"]) { add(try channel.ask("guest-get-cpustats", as: [AgentReplies.CPU].self), now, &values) }
        try part(["guest-get-diskstats"]) { add(try channel.ask("guest-get-diskstats", as: [AgentReplies.Disk].self), now, &values) }
        try part(["guest-get-fsinfo"]) { add(try channel.ask("guest-get-fsinfo", as: [AgentReplies.FileSystem].self), &values) }
        try part(["guest-get-users"]) { values.note("guest_users_count", Double(try channel.ask("guest-get-users", as: [AgentReplies.User].self).count)) }
        try part(AgentChannel.fileCommands) { addTasks(try Self.tasks(channel), now, &values) }
        guard mayExecute, journal.isDue(now) else { return }
        try part(AgentChannel.programCommands) { values.note("guest_journal_errors_per_second", try journal.look(channel, now)) }
    }

    /// Runs `body` when all these commands are offered, and strikes them out when what the agent answers is no use.
    private func part(_ needed: Set<String>, _ body: () throws -> Void) throws {
        guard let commands, needed.isSubset(of: commands) else { return }
        do {
            try body()
        } catch where AgentChannel.isOfAnswer(error) {
            Log.debug("\(name): its guest agent is not asked for \(needed.sorted().joined(separator: ", ")) any more: \(error)")
            self.commands?.subtract(needed)
        }
    }

    private static func tasks(_ channel: AgentChannel) throws -> GuestProc.Tasks {
        var tasks = GuestProc.Tasks()
        GuestProc.add(loadavg: try channel.text("/proc/loadavg", most: 256), to: &tasks)
        // The line of interrupts, before what is wanted, may have ten bytes for each of some thousand.
        GuestProc.add(stat: try channel.text("/proc/stat", most: 256 << 10), to: &tasks)
        return tasks
    }

    func addTasks(_ tasks: GuestProc.Tasks, _ now: MonotonicTime, _ values: inout [String: Double]) {
        // Agents before 10.0 have no guest-get-load.
        if values["guest_load_1m"] == nil { values.note("guest_load_1m", tasks.load1m) }
        values.note("guest_tasks_count", tasks.all)
        values.note("guest_tasks_running_count", tasks.running)
        values.note("guest_tasks_blocked_count", tasks.blocked)
        values.note("guest_forks_per_second", rates.perSecond("forks", tasks.forks, at: now))
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
