import ControlProtocol

struct UnprotectCommand: Command {
    let spec = CommandSpec(
        name: "unprotect", summary: "end a domain's protection and remove its shadow",
        operands: [.init(name: "DOMAIN")],
        options: CommandSpec.Option.client,
        description: [
            "Ends the protection of DOMAIN (name, id or UUID). The guest runs on; its shadow on the other host is removed, "
                + "and nothing of shadow-virt stays behind in the guest's QEMU.",
        ],
        examples: [.init("shadow-virt unprotect web1", "Stop keeping a shadow of web1")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        let response = try context.ask(ControlRequest(.unprotect, domain: domain), arguments, command: spec.name, notice:
            "The protection of \(domain) is still being removed: `shadow-virt status` shows what is left")
        guard let done = response.done else { throw context.unexpected(spec.name) }
        try context.printDone(done, arguments, command: spec.name)
        return ExitCode.ok
    }
}
