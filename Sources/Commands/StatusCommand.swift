import ControlProtocol
import Foundation

struct StatusCommand: Command {
    let spec = CommandSpec(
        name: "status", summary: "show the protected domains of this host",
        operands: [.init(name: "DOMAIN", isRequired: false)],
        options: [.init("check", help: "Exit with 2 unless every domain shown is protected (for monitoring).")] + CommandSpec.Option.client,
        description: [
            "Without DOMAIN: one line for each domain that has its primary or its shadow here. With DOMAIN (name, id or UUID): everything about it.",
            "EPOCH is the last one captured (primary) or committed (shadow); PAUSE what an epoch costs the guest (median); LAG what the shadow "
                + "still lacks, in epochs and bytes; RPO what would be lost if the primary's host failed now.",
        ],
        examples: [
            .init("shadow-virt status", "All domains"),
            .init("shadow-virt status web1 --format json", "One domain, for a program"),
            .init("shadow-virt status --check --quiet > /dev/null || alert", "For a monitor"),
        ],
        exitCodes: [(ExitCode.found, "with --check: a domain is not protected at the moment")])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands.first
        let response = try context.ask(ControlRequest(.status, domain: domain), arguments, command: spec.name, notice: "")
        guard let status = response.status else { throw context.unexpected(spec.name) }
        if let domain, status.domains.isEmpty {
            throw ControlFailure("Domain '\(domain)' has neither its primary nor its shadow under protection on \(status.host)",
                                 advice: "`shadow-virt status` lists those that have")
        }
        try context.print(.status(status, detail: domain != nil), arguments, command: spec.name)
        if status.domains.isEmpty { context.remark("No domain is protected on \(status.host.printable)", arguments) }
        if status.isDraining == true { context.remark("\(status.host.printable) is drained: it takes no shadows until `shadow-virt undrain`", arguments) }
        if let cost = status.telemetryCPUPercent { context.remark(String(format: "Telemetry costs %.2f %% of a core", cost), arguments) }
        guard arguments.has("check") else { return ExitCode.ok }
        return status.domains.allSatisfy { $0.state == .protected } ? ExitCode.ok : ExitCode.found
    }
}
