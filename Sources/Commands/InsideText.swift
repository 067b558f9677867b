import ControlProtocol
import Foundation

/// What `kpi --inside` says for people: the largest of each kind; `--format json` has all.
struct InsideText {
    private static let mostProcesses = 15, mostLibraries = 10

    var colour = false

    func text(_ inside: GuestInside) -> String {
        [head(inside), processes(inside), libraries(inside), fileSystems(inside), users(inside), journal(inside)].filter { !$0.isEmpty }.joined(separator: "\n")
    }

    private func head(_ inside: GuestInside) -> String {
        func count(_ number: Int?) -> String { number.map { "\($0)" } ?? "-" }
        var rows = [("Domain", "\(inside.domain.printable) on \(inside.host.printable)"), ("Agent", inside.agent.map { "qemu-ga \($0.printable)" } ?? "none")]
        if inside.tasks != nil {
            let load = inside.load1m.map { String(format: ", load %.2f", $0) } ?? ""
            rows.append(("Tasks", "\(count(inside.tasks)), \(count(inside.tasksRunning)) running, \(count(inside.tasksBlocked)) waiting for storage\(load)"))
        }
        rows += inside.notes.map { ("Note", $0.printable) }
        return rows.map { "\($0.0):".padding(toLength: 9, withPad: " ", startingAt: 0) + $0.1 + "\n" }.joined()
    }

    private func processes(_ inside: GuestInside) -> String {
        guard let all = inside.processes, !all.isEmpty else { return "" }
        var table = TextTable(columns: [.init("PID", .right), .init("PARENT", .right), .init("STATE"), .init("THREADS", .right), .init("CPU", .right), .init("RESIDENT", .right), .init("PROCESS")])
        for one in all.prefix(Self.mostProcesses) {
            table.add([.init("\(one.pid)"), .init("\(one.parent)"), .init(one.state.printable, one.state == "D" || one.state == "Z" ? .caution : .plain), .init("\(one.threads)"),
                       .init(Quantity.duration(milliseconds: one.cpuSeconds * 1000)), .init(Quantity.bytes(one.residentBytes)), .init(one.name.printable)])
        }
        return table.render(colour: colour) + rest(all.count, Self.mostProcesses, "process", "processes")
    }

    /// Those that run though their file was replaced are what an administrator looks for after an update.
    private func libraries(_ inside: GuestInside) -> String {
        guard let all = inside.libraries, !all.isEmpty else { return "" }
        let shown = Array(all.filter(\.isDeleted).prefix(Self.mostProcesses)) + all.filter { !$0.isDeleted }.prefix(Self.mostLibraries)
        var table = TextTable(columns: [.init("PROCESSES", .right), .init("LIBRARY")])
        for one in shown { table.add([.init("\(one.processes)"), .init(one.path.printable + (one.isDeleted ? " (replaced since)" : ""), one.isDeleted ? .caution : .plain)]) }
        return table.render(colour: colour) + rest(all.count, shown.count, "library", "libraries")
    }

    private func fileSystems(_ inside: GuestInside) -> String {
        guard let all = inside.fileSystems, !all.isEmpty else { return "" }
        var table = TextTable(columns: [.init("USED", .right), .init("SIZE", .right), .init("TYPE"), .init("MOUNTED")])
        func bytes(_ value: Double?) -> String { value.flatMap { UInt64(exactly: $0.rounded()) }.map { Quantity.bytes($0) } ?? "-" }
        for one in all { table.add([.init(bytes(one.usedBytes)), .init(bytes(one.totalBytes)), .init(one.type?.printable ?? "-"), .init(one.mountpoint.printable)]) }
        return table.render(colour: colour)
    }

    private func users(_ inside: GuestInside) -> String {
        guard let all = inside.users, !all.isEmpty else { return "" }
        var table = TextTable(columns: [.init("USER"), .init("SINCE")])
        for one in all { table.add([.init(one.name.printable), .init(one.since?.printable ?? "-")]) }
        return table.render(colour: colour)
    }

    private func journal(_ inside: GuestInside) -> String {
        guard let lines = inside.journal, !lines.isEmpty else { return "" }
        return "Errors since the guest's boot, the last ones:\n" + lines.map { "  \($0.printable)\n" }.joined()
    }

    private func rest(_ all: Int, _ shown: Int, _ one: String, _ many: String) -> String {
        all > shown ? "and \(all - shown) \(all - shown == 1 ? one : many)\n" : ""
    }
}
