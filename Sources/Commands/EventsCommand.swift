import ControlProtocol
import Foundation
import Glibc

struct EventsCommand: Command {
    let spec = CommandSpec(
        name: "events", summary: "show what happened to protections of this host",
        operands: [.init(name: "DOMAIN", isRequired: false)],
        options: [
            .init("follow", short: "f", help: "Go on with what happens from now, until Ctrl-C; over restarts of the service, too. Without --since the last ten come first."),
            .init("since", value: "TIME", help: "Only what happened since: 90s, 10m, 1h; a plain number means seconds."),
        ] + CommandSpec.Option.client,
        description: [
            "Prints the service's journal of events: protections that began and ended, lost and found their peer, swaps, failovers, refusals. With DOMAIN (name, id or UUID) "
                + "only what is about that one; by name and UUID also when it is not there any more. The last 8192 events are kept, over restarts of the service as well.",
            "With --format json each event is one JSON object on a line of its own.",
        ],
        examples: [
            .init("shadow-virt events --since 1h", "What happened in the last hour?"),
            .init("shadow-virt events web1 --follow", "Watch one domain"),
            .init("shadow-virt events --follow --format json", "For a program: `jq` picks out what it wants"),
        ])

    /// Between two attempts to reach a service that is being restarted.
    private static let reconnectMicroseconds: UInt32 = 500_000

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let format = try context.format(arguments, command: spec.name)
        let client = try context.client(arguments, command: spec.name)
        var query = EventQuery(follow: arguments.has("follow") ? true : nil)
        if let text = arguments.value("since") {
            guard let milliseconds = SwapCommand.milliseconds(text, plain: 1000), milliseconds.isFinite else {
                throw misuse("Option '--since': '\(text)' is no time: use for instance 90s, 10m or 1h")
            }
            query.sinceSeconds = milliseconds / 1000
        }
        // The usual end of following, so no reason for a message and another exit code.
        let interrupt = try CancelOnInterrupt(context.output, notice: "")
        defer { withExtendedLifetime(interrupt) {} }
        var printer = EventPrinter(output: context.output, format: format)
        var isConnected = false
        while true {
            do {
                var request = ControlRequest(.events, domain: arguments.operands.first)
                request.events = query
                try client.events(request, wake: interrupt.wake) { events in
                    isConnected = true
                    for event in events { printer.print(event) }
                    if let last = events.last, last.sequence > 0 { query.after = last.sequence }
                    if context.output.readerHasLeft { throw ReaderLeft() }
                }
            } catch is ReaderLeft {
                return ExitCode.ok
            } catch let error as ControlClientError where query.follow == true && isConnected && error.isPassing {
                context.remark("The service went away; waiting for it", arguments)
                if awaitReturn(client, interrupt) { continue }
            }
            return ExitCode.ok
        }
    }

    private struct ReaderLeft: Error {}

    /// False when somebody pressed Ctrl-C meanwhile.
    private func awaitReturn(_ client: ControlClient, _ interrupt: CancelOnInterrupt) -> Bool {
        while !interrupt.isPressed {
            if (try? client.exchange(ControlRequest(.ping))) != nil { return true }
            usleep(Self.reconnectMicroseconds)
        }
        return false
    }
}

extension ControlClientError {
    /// Over once the service is back.
    fileprivate var isPassing: Bool {
        switch self {
        case .notRunning, .closed, .silent: true
        case .permissionDenied, .badAnswer, .system: false
        }
    }
}

/// Events as lines: JSON, or columns that grow with what stands in them.
struct EventPrinter {
    let output: Output
    let format: OutputFormat
    private var domainWidth = 8

    init(output: Output, format: OutputFormat) {
        self.output = output
        self.format = format
    }

    mutating func print(_ event: ServiceEvent) {
        switch format {
        case .json: output.data((try? ControlCodec.encode(event)).map { String(decoding: $0, as: UTF8.self) } ?? "")
        case .table:
            domainWidth = max(domainWidth, min(32, event.domain?.printable.count ?? 0))
            output.data(Self.line(event, domainWidth: domainWidth, colour: output.colourOut))
        }
    }

    static func line(_ event: ServiceEvent, domainWidth: Int, colour: Bool) -> String {
        func pad(_ text: String, _ width: Int) -> String { text + String(repeating: " ", count: max(0, width - text.count)) }
        let kind = pad(event.kind.rawValue.printable, 14)
        // Whose side it was and who the peer is stands in most messages.
        let figures = (event.details ?? [:]).filter { $0.key != "role" && $0.key != "peer" }.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
        return "\(event.time.printable)  \(colour ? style(event.kind).apply(kind) : kind)  \(pad(event.domain?.printable ?? "-", domainWidth))  "
            + event.message.printable + (figures.isEmpty ? "" : " (\(figures.joined(separator: ", ").printable))")
    }

    private static func style(_ kind: EventKind) -> TextStyle {
        switch kind {
        case .protected, .peerBack, .resumed: .good
        case .degraded, .peerLost, .inDoubt, .refused, .failover, .failoverBegan, .lost: .bad
        case .suspended, .swapBegan, .unprotected: .caution
        default: .plain
        }
    }
}
