import ControlProtocol

/// `hosts` and `hosts clear HOST`.
struct HostsCommand: Command {
    let spec = CommandSpec(
        name: "hosts", summary: "show which hosts are trusted, and trust one again",
        operands: [.init(name: "list|clear", isRequired: false), .init(name: "HOST", isRequired: false)],
        options: CommandSpec.Option.client,
        description: [
            "A host that a guest left by itself, because the host drifted or its hardware failed, is suspect: it gets no guests and no shadows, on all hosts that know of "
                + "it. `clear HOST` ends that, here and on the others; what its hardware reported until then is taken as seen.",
        ],
        examples: [.init("shadow-virt hosts", "Who is suspect, and why"), .init("shadow-virt hosts clear node1", "node1 was repaired")],
        exitCodes: [(ExitCode.found, "list: a host is suspect")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let words = arguments.operands
        switch (words.first ?? "list", words.dropFirst().first) {
        case ("list", nil):
            guard let report = try context.ask(ControlRequest(.hosts), arguments, command: spec.name, notice: "").hosts else { throw context.unexpected(spec.name) }
            try context.print(.hosts(report), arguments, command: spec.name)
            return report.hosts.contains { $0.suspect != nil } ? ExitCode.found : ExitCode.ok
        case ("clear", let host?):
            let response = try context.ask(ControlRequest(.hosts, to: host), arguments, command: spec.name, notice: "")
            guard let done = response.done else { throw context.unexpected(spec.name) }
            try context.printDone(done, arguments, command: spec.name)
            return ExitCode.ok
        case ("clear", nil): throw misuse("Missing HOST: which one is to be trusted again?")
        case ("list", _?): throw misuse("'list' takes no HOST")
        case (let word, _): throw misuse("Unknown action '\(word)': use list or clear")
        }
    }

    static func text(_ report: HostsReport, colour: Bool) -> String {
        var table = TextTable(columns: [.init("HOST"), .init("TRUST"), .init("SINCE"), .init("REASON")])
        for host in report.hosts {
            let trust: TextTable.Cell = host.suspect == nil ? .init("trusted", .good) : .init("suspect", .bad)
            table.add([.init(host.name.printable + (host.isThisHost ? " (this host)" : "")), trust, .init(host.suspect?.since.printable ?? "-"),
                       .init(host.suspect?.reason.printable ?? "-")])
        }
        return table.render(colour: colour)
    }
}
