import ControlProtocol
import Foundation
import Libvirt
import Platform

/// Looks into a guest once, as far as its agent offers: processes, libraries, file systems, users, errors. With guest-exec by a few commands; without it
/// by reading files of /proc, process by process from the first one on.
public struct InsideLook {
    static let limitMs = 15_000.0
    static let mostProcesses = 2048, mostLibraries = 1024, mostJournalLines = 50
    /// Without guest-exec: each process costs six questions, and the libraries of one four.
    static let mostWalked = 400, mostMapped = 24
    /// Of a command in the guest, which goes on there when nobody waits for it any more.
    private static let programSeconds = 5
    /// Of a command's output: as base64 it stays below `AgentWire.mostBytes`.
    private static let mostOutput = 384 << 10
    private static let mostMembers = 1024

    /// No more is to be asked.
    private struct Over: Error {}

    private let channel: AgentChannel
    private let mayExecute: Bool
    private var commands: Set<String> = []
    private var found: GuestInside

    /// - Parameters:
    ///   - empty: the domain's names; the rest is found.
    ///   - mayAsk: looked at before each question.
    /// - Returns: what there is. An agent that is not there, dead, or lies is a note in it.
    public static func look(_ domain: Domain, _ empty: GuestInside, mayExecute: Bool, mayAsk: @escaping () -> Bool) -> GuestInside {
        guard let xml = try? domain.xml(), GuestAgent.isConnected(xml) else {
            var none = empty
            none.notes.append("No agent is connected in the guest: is qemu-guest-agent running there, and does the domain have its channel (org.qemu.guest_agent.0)?")
            return none
        }
        return look(AgentChannel(limitMs: limitMs, mayAsk: mayAsk) { try domain.agentJSON($0, seconds: $1) }, empty, mayExecute: mayExecute)
    }

    static func look(_ channel: AgentChannel, _ empty: GuestInside, mayExecute: Bool) -> GuestInside {
        var look = InsideLook(channel: channel, mayExecute: mayExecute, found: empty)
        do {
            try look.all()
        } catch {
            // It stands in the notes.
        }
        return look.found
    }

    private init(channel: AgentChannel, mayExecute: Bool, found: GuestInside) {
        (self.channel, self.mayExecute, self.found) = (channel, mayExecute, found)
    }

    private mutating func all() throws {
        try part("What the agent offers", []) { look in
            let info = try look.channel.ask("guest-info", as: AgentReplies.Info.self)
            look.found.agent = String(info.version.prefix(64))
            look.commands = info.enabledNames
        }
        guard found.agent != nil else { return }
        try part("Load", AgentChannel.fileCommands) { try $0.tasks() }
        try part("File systems", ["guest-get-fsinfo"]) { look in
            look.found.fileSystems = try look.channel.ask("guest-get-fsinfo", as: [AgentReplies.FileSystem].self).prefix(Self.mostMembers).map {
                GuestInside.FileSystem(mountpoint: $0.mountpoint, type: $0.type, usedBytes: $0.usedBytes, totalBytes: $0.totalBytes)
            }
        }
        try part("Users", ["guest-get-users"]) { look in
            look.found.users = try look.channel.ask("guest-get-users", as: [AgentReplies.User].self).prefix(Self.mostMembers).map { user in
                let login = user.login.flatMap { $0.isFinite && $0 > 0 && $0 < 1e11 ? Int($0) : nil }
                return GuestInside.User(name: user.user ?? "", since: login.map { Timestamp.format(seconds: $0, milliseconds: 0) })
            }
        }
        if mayExecute, AgentChannel.programCommands.isSubset(of: commands) {
            try part("Processes", []) { try $0.listProcesses() }
            try part("Libraries", []) { try $0.listLibraries() }
            try part("Errors of the journal", []) { look in
                look.found.journal = try GuestJournal.last(look.channel, Self.mostJournalLines)
                if look.found.journal == nil { look.found.notes.append("Errors of the journal: there is no journalctl that can tell in the guest") }
            }
        } else {
            try part("Processes", AgentChannel.fileCommands) { try $0.walkProcesses() }
            try part("Libraries", AgentChannel.fileCommands) { try $0.readMaps() }
            found.notes.append("Errors of the journal: " + (mayExecute ? "the agent offers no guest-exec" : "guest_exec is 0 in the configuration"))
        }
    }

    /// One part of the whole. What the agent cannot tell is a note, and the others go on; when nothing more is to be had, that is a note and the end.
    private mutating func part(_ what: String, _ needed: Set<String>, _ body: (inout InsideLook) throws -> Void) throws {
        guard needed.isSubset(of: commands) else {
            found.notes.append("\(what): the agent offers no \(needed.subtracting(commands).sorted().joined(separator: ", "))")
            return
        }
        do {
            try body(&self)
        } catch where AgentChannel.isOfAnswer(error) {
            found.notes.append("\(what): \(error)")
        } catch AgentChannel.Refusal.notNow {
            found.notes.append("\(what), and what follows: the guest changes hosts, and is not asked meanwhile")
            throw Over()
        } catch AgentChannel.Refusal.late {
            found.notes.append("\(what), and what follows: not within \(Int(Self.limitMs / 1000)) s")
            throw Over()
        } catch {
            found.notes.append("\(what), and what follows: the agent does not answer (\(error))")
            throw Over()
        }
    }

    private mutating func tasks() throws {
        var tasks = GuestProc.Tasks()
        GuestProc.add(loadavg: try channel.text("/proc/loadavg", most: 256), to: &tasks)
        GuestProc.add(stat: try channel.text("/proc/stat", most: 256 << 10), to: &tasks)
        found.load1m = tasks.load1m
        (found.tasks, found.tasksRunning, found.tasksBlocked) = (tasks.all.map { Int($0) }, tasks.running.map { Int($0) }, tasks.blocked.map { Int($0) })
    }

    // MARK: By programs

    private mutating func listProcesses() throws {
        let output = try channel.run("timeout \(Self.programSeconds) cat /proc/[0-9]*/stat 2>/dev/null | head -c \(Self.mostOutput)").output
        let page = pageSize
        setProcesses(output.split(separator: "\n").compactMap(GuestProc.process), page)
    }

    private mutating func listLibraries() throws {
        // A process has one mapping of a library that is run, as a rule. Seven processes whatever the guest has: one for each of its own took an emulated guest a quarter
        // of a minute.
        let script = """
            timeout \(Self.programSeconds) sed -n 's,^[^ ]* ..x[^ ]* [^ ]* [^ ]* [0-9]* *\\(/.*\\.so.*\\)$,\\1,p' /proc/[0-9]*/maps 2>/dev/null \
              | cut -c1-\(GuestProc.mostPath) | sort | uniq -c | sort -rn | head -n \(Self.mostLibraries) | head -c \(Self.mostOutput)
            """
        let counts = try channel.run(script).output.split(separator: "\n").compactMap { line -> (String, Int)? in
            let words = line.drop { $0 == " " }.split(separator: " ", maxSplits: 1)
            guard words.count == 2, let count = Int(words[0]), count > 0, words[1].hasPrefix("/") else { return nil }
            return (String(words[1]), count)
        }
        setLibraries(counts)
    }

    // MARK: By files

    /// From the first process to its children (`/proc/PID/task/PID/children`), and on to theirs; those that another thread than the main one began are not found.
    private mutating func walkProcesses() throws {
        var waiting = [1, 2], processes: [GuestProc.Process] = [], seen: Set<Int> = [1, 2]
        while let pid = waiting.first, processes.count < Self.mostWalked {
            waiting.removeFirst()
            do {
                let line = try channel.text("/proc/\(pid)/stat", most: 4096)
                guard let process = GuestProc.process(line[...]) else { continue }
                processes.append(process)
                for child in try channel.text("/proc/\(pid)/task/\(pid)/children").split(separator: " ").compactMap({ Int($0) }) where seen.insert(child).inserted {
                    waiting.append(child)
                }
            } catch let error as MonitorError {
                // It has ended meanwhile; without the first one there is nothing to walk along.
                if pid == 1 { throw error }
            }
        }
        if !waiting.isEmpty { found.notes.append("Processes: the first \(Self.mostWalked), without guest-exec") }
        setProcesses(processes, pageSize)
    }

    private mutating func readMaps() throws {
        let largest = (found.processes ?? []).filter { $0.residentBytes > 0 }.prefix(Self.mostMapped)
        var counts: [String: Int] = [:]
        for process in largest {
            do {
                for path in GuestProc.libraries(maps: try channel.text("/proc/\(process.pid)/maps", most: 256 << 10)) { counts[path, default: 0] += 1 }
            } catch is MonitorError {
                continue
            }
        }
        if let all = found.processes, all.count > largest.count { found.notes.append("Libraries: of the \(largest.count) largest processes, without guest-exec") }
        setLibraries(counts.map { ($0.key, $0.value) })
    }

    // MARK: What both give

    private var pageSize: UInt64 {
        guard AgentChannel.fileCommands.isSubset(of: commands), let auxv = try? channel.file("/proc/self/auxv", most: 1024) else { return 4096 }
        return GuestProc.pageSize(auxv: auxv) ?? 4096
    }

    private mutating func setProcesses(_ processes: [GuestProc.Process], _ page: UInt64) {
        let all = processes.map {
            GuestInside.Process(pid: $0.pid, parent: $0.parent, name: $0.name, state: $0.state, threads: $0.threads, cpuSeconds: $0.cpuSeconds,
                                residentBytes: $0.residentPages.multipliedReportingOverflow(by: page).partialValue)
        }
        found.processes = Array(all.sorted { ($0.residentBytes, $1.pid) > ($1.residentBytes, $0.pid) }.prefix(Self.mostProcesses))
    }

    private mutating func setLibraries(_ counts: [(path: String, processes: Int)]) {
        let mark = " (deleted)"
        let all = counts.map { GuestInside.Library(path: $0.path.hasSuffix(mark) ? String($0.path.dropLast(mark.count)) : $0.path, processes: $0.processes,
                                                   isDeleted: $0.path.hasSuffix(mark)) }
        found.libraries = Array(all.sorted { ($1.processes, $0.path) < ($0.processes, $1.path) }.prefix(Self.mostLibraries))
    }
}
