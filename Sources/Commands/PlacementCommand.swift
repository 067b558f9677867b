import ControlProtocol

struct PlacementCommand: Command {
    let spec = CommandSpec(
        name: "placement", summary: "which host a domain's shadow would go to, and why",
        operands: [.init(name: "DOMAIN")],
        options: [.init("explain", help: "Show every host with what speaks for and against it.")] + CommandSpec.Option.client,
        description: [
            "Asks every peer, and prints the name of the host that suits DOMAIN (name, id or UUID) best by its policy. Nothing is changed.",
            "Out is a host that cannot run the guest (KVM, machine type, CPU, devices, huge pages, NUMA nodes), lacks memory or room for its disks, is being drained, "
                + "does not answer, or breaks a required rule. Of the others the one that fulfils most rules; then the one with more free memory in whole GiB, after "
                + "what shadows there may still take; then the lower cost; then the name.",
        ],
        examples: [.init("shadow-virt placement web1 --explain", "Why there?")],
        exitCodes: [(ExitCode.found, "no host suits")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let response = try context.ask(ControlRequest(.placement, domain: arguments.operands[0]), arguments, command: spec.name, notice: "")
        guard let report = response.placement else { throw context.unexpected(spec.name) }
        if try arguments.has("explain") || context.format(arguments, command: spec.name) == .json {
            try context.print(.placement(report), arguments, command: spec.name)
        } else if let chosen = report.chosen {
            context.output.data(chosen.host.printable)
        }
        guard report.chosen == nil else { return ExitCode.ok }
        context.output.error("No host suits \(report.domain)", advice: arguments.has("explain") ? "" : "--explain shows why")
        return ExitCode.found
    }
}
