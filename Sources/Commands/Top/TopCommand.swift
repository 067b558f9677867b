import ControlProtocol
import Foundation
import Glibc
import Platform

struct TopCommand: Command {
    let spec = CommandSpec(
        name: "top", summary: "watch the protected domains of this host",
        options: [
            .init("once", help: "Print one table after one delay (1 s unless --delay says otherwise), and end. Also what happens when stdout is no terminal."),
            .init("delay", short: "d", value: "SECONDS", help: "Time between two tables, 0.1 to 3600 s. Default 2."),
            .init("iterations", short: "n", value: "N", help: "End after N tables."),
            .init("sort", value: "KEY", help: "name, state, rpo, lag, pause, dirtied or sent; name is the default. All but name: the worst first."),
            .config, .socket, .quiet, .help,
        ],
        description: [
            "Shows the domains that have their primary or their shadow here, with rates that are computed between two looks. Looking asks the "
                + "service only, never libvirt or a guest.",
            "EPOCH/S are epochs captured (primary) or committed (shadow); PAUSE and P99 what an epoch costs the guest, median and 99th percentile; "
                + "%STOP the part of the time that this makes; LAG what the shadow still lacks; RPO what would be lost if the primary's host failed now; "
                + "DIRTY/S memory that the guest changes; SENT/S and DISK/S what crosses the network, all of it and the disk writes among it.",
            "On a terminal: q ends; n, s, r, l, p, d, t sort. Ctrl-C ends as well.",
        ],
        examples: [
            .init("shadow-virt top", "Watch"),
            .init("shadow-virt top --once --sort state", "One table, trouble first"),
            .init("shadow-virt top --iterations 60 --delay 10 > ten-minutes.txt", "For later"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let iterations = try arguments.value("iterations").map(number)
        let isOnce = arguments.has("once") || !context.output.outIsTerminal && iterations == nil
        let delay = try arguments.value("delay").map(seconds) ?? (isOnce ? 1 : 2)
        guard let sort = TopTable.SortKey(rawValue: arguments.value("sort") ?? "name") else {
            throw misuse("Option '--sort': use \(TopTable.SortKey.allCases.map(\.rawValue).joined(separator: ", "))")
        }
        let client = try context.client(arguments, command: spec.name)
        if isOnce || !context.output.outIsTerminal || isatty(0) != 1 {
            return try printTables(isOnce ? 1 : iterations ?? .max, delay, sort, client, context)
        }
        let live = try TopView(TerminalScreen(input: 0, output: 1), input: 0, signals: TerminalSignals(), delayMs: delay * 1000, sort: sort,
                               colour: context.output.colourOut) { try look(client, context) }
        try live.run(iterations: iterations ?? .max)
        return ExitCode.ok
    }

    private func printTables(_ count: Int, _ delay: Double, _ sort: TopTable.SortKey, _ client: ControlClient, _ context: CommandContext) throws -> Int32 {
        var before = try look(client, context)
        for index in 0..<count where !context.output.readerHasLeft {
            usleep(UInt32(delay * 1e6))
            let now = try look(client, context)
            context.output.data((index > 0 ? "\n" : "") + TopTable.summary(now.status))
            if !now.status.domains.isEmpty { context.output.data(TopTable.table(TopTable.rows(before, now, sortedBy: sort), colour: context.output.colourOut)) }
            before = now
        }
        return ExitCode.ok
    }

    private func look(_ client: ControlClient, _ context: CommandContext) throws -> TopTable.Snapshot {
        let response = try client.exchange(ControlRequest(.status))
        if let failure = response.failure { throw failure }
        guard let status = response.status else { throw context.unexpected(spec.name) }
        return TopTable.Snapshot(status: status, at: .now)
    }

    private func number(_ text: String) throws -> Int {
        guard let number = Int(text), number > 0 else { throw misuse("Option '--iterations': '\(text)' is no number above 0") }
        return number
    }

    private func seconds(_ text: String) throws -> Double {
        let digits = text.hasSuffix("s") ? text.dropLast() : text[...]
        guard let value = Double(digits), 0.1...3600 ~= value else { throw misuse("Option '--delay': '\(text)' is no number of seconds from 0.1 to 3600") }
        return value
    }
}

/// The table on a terminal. The service is asked on a thread of its own: a key works at once, though the service hang.
final class TopView {
    private struct Latest {
        var before: TopTable.Snapshot?
        var now: TopTable.Snapshot?
        var problem: String?
        var looks = 0
        var isOver = false
    }

    private let screen: TerminalScreen
    private let input: Int32
    private let signals: TerminalSignals
    private let delayMs: Double
    private var sort: TopTable.SortKey
    private let colour: Bool
    private let look: @Sendable () throws -> TopTable.Snapshot
    private let latest = Guarded(Latest())

    init(_ screen: TerminalScreen, input: Int32, signals: TerminalSignals, delayMs: Double, sort: TopTable.SortKey, colour: Bool,
         look: @escaping @Sendable () throws -> TopTable.Snapshot) {
        self.screen = screen
        self.input = input
        self.signals = signals
        self.delayMs = delayMs
        self.sort = sort
        self.colour = colour
        self.look = look
    }

    /// Until q, a signal, the terminal's end or so many tables. The terminal is as it was before, also when this throws.
    func run(iterations: Int) throws {
        defer {
            latest.change { $0.isOver = true }
            screen.leave()
        }
        startLooking()
        while true {
            draw()
            // Nil: a new answer, another size, or a signal.
            if let ready = try waitOrWake(input, for: .readable, wake: signals.wake.raw, until: MonotonicTime.now.adding(milliseconds: 1000)) {
                if !ready.isEmpty, !take(screen.keys()) { return }
            } else {
                signals.wake.clear()
            }
            if signals.endsNow || latest.read({ $0.looks > iterations }) { return }
        }
    }

    private func startLooking() {
        startThread("top") { [latest, look, delayMs, wake = signals.wake] in
            repeat {
                let result = Result { try look() }
                latest.change { latest in
                    switch result {
                    case .success(let snapshot):
                        (latest.before, latest.now, latest.problem) = (latest.now, snapshot, nil)
                        latest.looks += 1
                    case .failure(let error): latest.problem = "\(error)"
                    }
                }
                wake.signal()
            } while latest.wait(until: MonotonicTime.now.adding(milliseconds: delayMs), { $0.isOver ? true : nil }) == nil
        }
    }

    private func draw() {
        let latest = latest.read { $0 }
        var lines = latest.now.map { [TopTable.summary($0.status)] } ?? ["shadow-virt top"]
        lines.append(latest.problem.map { colour ? TextStyle.bad.apply($0.printable) : $0.printable } ?? "")
        if let now = latest.now {
            lines += TopTable.table(TopTable.rows(latest.before, now, sortedBy: sort), colour: colour).split(separator: "\n").map(String.init)
        }
        screen.show(lines + ["", TopTable.keys])
    }

    /// False: somebody wants to leave, or the terminal is gone.
    private func take(_ keys: [Character]?) -> Bool {
        guard let keys else { return false }
        for key in keys {
            if key == "q" || key == "Q" { return false }
            if let chosen = TopTable.SortKey.allCases.first(where: { $0.letter == key }) { sort = chosen }
        }
        return true
    }
}
