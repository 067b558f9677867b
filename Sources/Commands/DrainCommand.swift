import ControlProtocol

/// `drain` and `undrain`.
struct DrainCommand: Command {
    let spec: CommandSpec
    private let verb: ControlRequest.Verb

    static let drain = DrainCommand(.drain, CommandSpec(
        name: "drain", summary: "empty this host for maintenance",
        operands: [.init(name: "HOST", isRequired: false)],
        options: [.init("dry-run", help: "Say what would be done, and do nothing.")] + CommandSpec.Option.client,
        description: [
            "From now on this host takes no shadows (that survives a reboot). Shadows that it holds are made elsewhere by their guests' hosts. Then its guests go, one after the "
                + "other, the smallest first: one with a shadow is swapped to it, one without is moved by live migration to where its shadow would go. What cannot go is reported, and stays.",
            "HOST is this host's name, to be sure; another host is drained by running the command there. Ctrl-C ends it after the guest that is on its way. Repeating it goes on where it stopped.",
        ],
        examples: [.init("shadow-virt drain --dry-run", "What would happen?"), .init("shadow-virt drain", "Before maintenance")],
        exitCodes: [(ExitCode.found, "something stays here")]))

    static let undrain = DrainCommand(.undrain, CommandSpec(
        name: "undrain", summary: "take guests and shadows again after a drain",
        operands: [.init(name: "HOST", isRequired: false)],
        options: [.init("dry-run", help: "Say what would be done, and do nothing.")] + CommandSpec.Option.client,
        description: [
            "This host takes shadows again, and the guests that left it by `drain` come back, in the order in which they went: one with a policy gets its shadow here and is swapped to it, "
                + "one without comes by live migration. What cannot come stays on the list; repeating the command tries it again.",
            "HOST is this host's name, to be sure. Ctrl-C ends it after the guest that is on its way.",
        ],
        examples: [.init("shadow-virt undrain", "After maintenance")],
        exitCodes: [(ExitCode.found, "a guest did not come back")]))

    private init(_ verb: ControlRequest.Verb, _ spec: CommandSpec) { (self.verb, self.spec) = (verb, spec) }

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        var request = ControlRequest(verb, to: arguments.operands.first)
        request.dryRun = arguments.has("dry-run") ? true : nil
        let interrupt = try CancelOnInterrupt(context.output, notice: "The service ends after the guest that is on its way; `shadow-virt status` shows it")
        defer { withExtendedLifetime(interrupt) {} }
        let response = try context.ask(request, arguments, command: spec.name, interrupt: interrupt)
        guard let report = response.drain else { throw context.unexpected(spec.name) }
        try context.print(.drain(report), arguments, command: spec.name)
        context.remark(remark(report), arguments)
        if report.wasCancelled { return ExitCode.interrupted }
        return report.steps.contains { $0.result == .failed } ? ExitCode.found : ExitCode.ok
    }

    /// What there is to say besides the steps: above all whether this host takes shadows now.
    private func remark(_ report: DrainReport) -> String {
        let host = report.host.printable
        let none = verb == .drain ? "Nothing runs on \(host)" : "Nothing left \(host) by a drain"
        let takes = report.isDraining ? "\(host) takes no shadows until `shadow-virt undrain`" : "\(host) takes shadows"
        return report.steps.isEmpty ? "\(none). \(takes)" : takes
    }
}
