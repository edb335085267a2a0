{{- /* Labels that select: a dict with root and component. */ -}}
{{- define "gridbox.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "gridbox.podLabels" -}}
{{ include "gridbox.selector" . }}
app.kubernetes.io/part-of: gridbox
{{- end -}}

{{- define "gridbox.helmLabels" -}}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "gridbox.labels" -}}
{{ include "gridbox.podLabels" . }}
{{ include "gridbox.helmLabels" . }}
{{- end -}}

{{- /* Where Triton finds the store. */ -}}
{{- define "gridbox.modelStore" -}}
{{- if .Values.store.enabled -}}
s3://http://{{ .Release.Name }}-store:8333
{{- else -}}
s3://{{ .Values.model.endpoint }}
{{- end -}}
{{- end -}}

{{- define "gridbox.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "gridbox.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* Who may ask: this namespace and those with the clients' labels. */ -}}
{{- define "gridbox.clients" -}}
- podSelector: {}
{{- with .Values.networkPolicy.clientNamespaceLabels }}
- namespaceSelector:
    matchLabels:
      {{- toYaml . | nindent 6 }}
{{- end }}
{{- end -}}
