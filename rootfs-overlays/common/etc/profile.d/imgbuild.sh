# kubectl for whoever may read the administrator's file.
if [ -z "${KUBECONFIG-}" ] && [ -r /etc/kubernetes/admin.conf ]; then
    export KUBECONFIG=/etc/kubernetes/admin.conf
fi
