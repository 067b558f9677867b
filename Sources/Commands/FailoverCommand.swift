import ControlProtocol

struct FailoverCommand: Command {
    let spec = CommandSpec(
        name: "failover", summary: "activate a shadow because its primary is gone",
        operands: [.init(name: "DOMAIN")],
        options: [
            .init("force", help: "Go ahead though the primary cannot be proved dead. If it still runs, there are two copies of the guest, "
                + "with the same addresses: stop it first, or cut it off."),
        ] + CommandSpec.Option.client,
        description: [
            "Run on the shadow's host. Makes the shadow of DOMAIN (name, id or UUID) run from the last committed epoch: what the guest did "
                + "after that epoch is lost, at most one epoch when the shadow was up to date.",
            "It is refused while the primary is reachable and runs there (use `swap` there), and while its death cannot be proved, unless --force is given.",
        ],
        examples: [
            .init("shadow-virt failover web1", "The primary's host is down"),
            .init("shadow-virt failover web1 --force", "Its power was cut by hand, which this host cannot know"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        let request = ControlRequest(.failover, domain: domain, force: arguments.has("force"))
        let response = try context.ask(request, arguments, command: spec.name, notice:
            "The failover of \(domain) goes on: `shadow-virt status \(domain)` tells how it ended")
        guard let handover = response.handover else { throw context.unexpected(spec.name) }
        try context.print(.handover(handover), arguments, command: spec.name)
        return ExitCode.ok
    }
}
