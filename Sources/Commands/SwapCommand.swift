import ControlProtocol

struct SwapCommand: Command {
    let spec = CommandSpec(
        name: "swap", summary: "move a domain to its shadow's host, losing nothing",
        operands: [.init(name: "DOMAIN")],
        options: CommandSpec.Option.client,
        description: [
            "Run on the primary's host. Captures one last epoch of DOMAIN (name, id or UUID), activates the shadow from it and ends the "
                + "source. If anything fails before the shadow runs, the guest goes on here as if nothing had been.",
            "When it is over, the guest is not protected any more until `protect` is run on its new host.",
        ],
        examples: [.init("shadow-virt swap web1", "Empty this host for maintenance")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        let response = try context.ask(ControlRequest(.swap, domain: domain), arguments, command: spec.name, notice:
            "The swap of \(domain) goes on: `shadow-virt status \(domain)` here and on the other host tells how it ended")
        guard let handover = response.handover else { throw context.unexpected(spec.name) }
        try context.print(.handover(handover), arguments, command: spec.name)
        return ExitCode.ok
    }
}
