import ControlProtocol
import Orchestration

extension ControlServer {
    /// `diagnose --list` and `--fetch`.
    func answerBundles(_ request: ControlRequest, _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void) throws -> ControlResponse {
        guard let name = request.bundle else {
            var response = ControlResponse()
            response.bundles = try registry.bundles(of: request.to)
            return response
        }
        guard let host = request.to else { throw ControlFailure("The request does not say which host's bundle it is") }
        let path = try withProgress({ ControlResponse.Progress("Fetching \(name) of \(host)") }, progress) { [registry] in try registry.fetchBundle(name, of: host) }
        return ControlResponse(done: "Fetched \(path)")
    }
}
